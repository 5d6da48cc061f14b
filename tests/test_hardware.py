"""What a machine is, told from copies of its files."""

from pathlib import Path

from seedx_batch import hardware


def test_a_machine_with_npus_and_gpus(tmp_path: Path) -> None:
    """Processor and memory are read from the kernel's files, GPUs by name, NPUs by count."""
    (tmp_path / "proc/driver/nvidia/gpus").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Kunpeng 920\nflags\t: x\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:       2048 kB\nMemFree: 1 kB\n")
    for number in range(2):
        (tmp_path / f"dev/davinci{number}").touch()
        gpu = tmp_path / f"proc/driver/nvidia/gpus/{number}"
        gpu.mkdir()
        (gpu / "information").write_text("Model: \t\t NVIDIA H100\nIRQ: 1\n")
    (tmp_path / "dev/davinci_manager").touch()
    told = hardware.describe(tmp_path)
    assert (told["cpu"], told["memory_bytes"]) == ("Kunpeng 920", 2048 * 1024)
    assert told["devices"] == {"NVIDIA H100": 2, "Ascend NPU": 2}
    assert told["num_cpus"] >= 1


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    """Without those files there is still an answer: the processor's architecture, and no devices."""
    told = hardware.describe(tmp_path)
    assert told["cpu"]
    assert (told["memory_bytes"], told["devices"]) == (None, {})
