"""Proves what run_job.sh and requirements/setup.sh do, with a Python that only notes how it is called.

Must never know the network, nor touch the .venv of this folder.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = "bash cat cp cut date dirname env flock grep mkdir readlink rm sed sha256sum sleep tail tee timeout touch"
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"

# Answers like Python where setup.sh asks it something; notes its arguments, one call a line.
FAKE_PYTHON = r"""#!/usr/bin/env bash
printf '%s\n' "${*//$'\n'/ }" >>"$FAKE/calls"
case "$*" in
    *vllm_ascend*) [ -e "$FAKE/ascend" ] ;;
    *ensurepip*) [ ! -e "$FAKE/no_venv_module" ] ;;
    *'version("torch")'*) exit 1 ;;
    --version) echo "Python 3.11.0" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/made" ;;
    "-m pip index"*--index-url*) cat "$FAKE/pytorch_index" ;;
    "-m pip index"*) cat "$FAKE/own_index" ;;
    "-m pip install"*)
        if [ -e "$FAKE/no_space" ]; then echo "ERROR: no space left on device"; exit 1; fi
        touch "$FAKE/installing"
        while [ -e "$FAKE/hold" ]; do sleep 0.02; done ;;
    "requirements/missing.py --pins") echo torch==2.9.0 ;;
    requirements/missing.py*) cat "$FAKE/missing" ;;
    "-m seedx_batch"*)
        printf '%s\n' "$$" "$PWD" "$PYTHONPATH" "${@:3}"
        exit "$(cat "$FAKE/exit_code")" ;;
    *) echo "the fake python does not know: $*" >&2; exit 99 ;;
esac
"""


class Machine:
    """A project folder and a PATH that holds the fake python3 and the few tools that the scripts need."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "project"
        self.fake = folder / "fake"
        self.bin = folder / "bin"
        self.elsewhere = folder / "elsewhere"
        for each in (self.project / "requirements", self.project / "jobs", self.fake, self.bin, self.elsewhere):
            each.mkdir(parents=True)
        for name in (
            "run_job.sh",
            "pyproject.toml",
            "requirements/setup.sh",
            "requirements/cpu.lock",
            "requirements/dev.lock",
        ):
            shutil.copy(ROOT / name, self.project / name)
        (self.project / "jobs/x.yaml").touch()
        for tool in TOOLS.split():
            found = shutil.which(tool)
            if found:
                (self.bin / tool).symlink_to(found)
        (self.bin / "python3").write_text(FAKE_PYTHON)
        (self.bin / "python3").chmod(0o755)
        self.say("own_index", "Available versions: 2.13.0+cpu, 2.13.0")
        self.say("pytorch_index", "")
        self.say("missing", "")
        self.say("exit_code", "0")
        self.say("calls", "")

    def say(self, name: str, text: str = "") -> None:
        """Set what the fake python answers from now on."""
        (self.fake / name).write_text(text)

    def start(
        self, *arguments: str, script: str | Path = "", folder: Path | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        """Start run_job.sh, or another script, in a process group of its own."""
        return subprocess.Popen(
            [str(script or self.project / "run_job.sh"), *arguments],
            cwd=folder or self.project,
            env={"PATH": str(self.bin), "FAKE": str(self.fake), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, script: str | Path = "", folder: Path | None = None, **variables: str) -> "Ended":
        """What a call prints and ends with."""
        return Ended(self.start(*arguments, script=script, folder=folder, **variables))

    def calls(self, containing: str) -> list[str]:
        """The calls of the fake python so far that contain this."""
        return [line for line in (self.fake / "calls").read_text().splitlines() if containing in line]

    def forget_calls(self) -> None:
        """Note calls from here on only."""
        self.say("calls", "")


class Ended:
    """A call of the script that has ended: its exit code, and what the program at its end saw."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.stdout, self.stderr = process.communicate(timeout=60)
        self.started_as = process.pid
        self.exit_code = process.returncode
        lines = self.stdout.splitlines()
        self.pid, self.cwd, self.pythonpath = [*lines, "", "", ""][:3]
        self.arguments = lines[3:]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine on which nothing was set up yet."""
    return Machine(tmp_path)


@pytest.fixture
def ready(machine: Machine) -> Machine:
    """A machine that was set up, with its calls forgotten."""
    assert machine.run("status").exit_code == 0
    machine.forget_calls()
    return machine


def wait_until(holds: Callable[[], bool]) -> None:
    """Go on once this holds; fails the test where it does not within a minute."""
    for _ in range(3000):
        if holds():
            return
        time.sleep(0.02)
    pytest.fail("waited for a minute in vain")


def test_first_call_sets_up_and_second_does_not(machine: Machine) -> None:
    """A new machine gets a .venv with the lock and the project; the next call goes straight to the program."""
    first = machine.run("status")
    assert first.exit_code == 0, first.stderr
    installs = machine.calls("-m pip install")
    assert "--no-deps --requirement requirements/cpu.lock" in installs[0]
    assert installs[1].endswith("--editable .")
    assert "setting up .venv" in first.stderr

    machine.forget_calls()
    second = machine.run("status")
    assert (second.exit_code, second.stderr) == (0, "")
    assert machine.calls("-m pip") == machine.calls("-m venv") == []


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["jobs/x.yaml", "--limit", "100"], ["run", "jobs/x.yaml", "--limit", "100"]),
        (["not/there.yml"], ["run", "not/there.yml"]),
        (["status", "runs/a b"], ["status", "runs/a b"]),
        (["plan", "jobs/x.yaml"], ["plan", "jobs/x.yaml"]),
        (["run", "jobs/x.yaml", "--set", "name=*"], ["run", "jobs/x.yaml", "--set", "name=*"]),
        ([], ["--help"]),
    ],
)
def test_arguments_are_passed_on(ready: Machine, given: list[str], passed: list[str]) -> None:
    """A job file first means run; everything else is a subcommand; no argument is split or expanded."""
    assert ready.run(*given).arguments == passed


def test_program_replaces_the_script(ready: Machine) -> None:
    """The program has the process id that the scheduler started, and its exit code comes back."""
    ready.say("exit_code", "75")
    ended = ready.run("jobs/x.yaml")
    assert (ended.exit_code, int(ended.pid)) == (75, ended.started_as)


def test_works_in_project_folder_from_anywhere(ready: Machine) -> None:
    """Called through a link from elsewhere, it works in the project's folder and finds the caller's job file."""
    (ready.elsewhere / "mine.yaml").touch()
    link = ready.elsewhere / "run"
    link.symlink_to(ready.project / "run_job.sh")
    ended = ready.run("mine.yaml", script=link, folder=ready.elsewhere)
    assert (ended.cwd, ended.arguments) == (str(ready.project), ["run", str(ready.elsewhere / "mine.yaml")])
    assert ready.run("jobs/x.yaml", script=link, folder=ready.elsewhere).arguments == ["run", "jobs/x.yaml"]
    assert ended.pythonpath == str(ready.project)


def test_slurm_runs_a_copy_of_the_script(ready: Machine) -> None:
    """From Slurm's spool folder it finds the project by SLURM_SUBMIT_DIR or SEEDX_BATCH_HOME, or says it cannot."""
    copy = ready.elsewhere / "slurm_script"
    shutil.copy(ready.project / "run_job.sh", copy)
    for variables in ({"SLURM_SUBMIT_DIR": str(ready.project)}, {"SEEDX_BATCH_HOME": str(ready.project)}):
        ended = ready.run("jobs/x.yaml", script=copy, folder=ready.elsewhere, **variables)
        assert (ended.exit_code, ended.cwd) == (0, str(ready.project)), ended.stderr
    for variables in ({}, {"SLURM_SUBMIT_DIR": str(ready.elsewhere)}, {"SEEDX_BATCH_HOME": str(ready.elsewhere)}):
        ended = ready.run("jobs/x.yaml", script=copy, folder=ready.elsewhere, **variables)
        assert (ended.exit_code, ended.stdout) == (78, "")
        assert "SEEDX_BATCH_HOME" in ended.stderr


@pytest.mark.parametrize("name", ["requirements/cpu.lock", "pyproject.toml"])
def test_changed_lock_is_installed_again(ready: Machine, name: str) -> None:
    """A change of the lock or of pyproject.toml brings the same .venv up to date, once."""
    with (ready.project / name).open("a") as file:
        file.write("# changed\n")
    assert ready.run("status").exit_code == 0
    assert (len(ready.calls("-m pip install")), ready.calls("-m venv")) == (2, [])
    ready.forget_calls()
    ready.run("status")
    assert ready.calls("-m pip") == []


def test_dev_packages_come_on_top(ready: Machine) -> None:
    """`--dev` adds the second lock to a .venv that jobs have made, and leaves it ready for jobs."""
    setup = ready.project / "requirements/setup.sh"
    ended = ready.run("--dev", script=setup)
    assert ended.stdout.splitlines() == [str(ready.project / ".venv/bin/python")]
    assert "requirements/cpu.lock --requirement requirements/dev.lock" in ready.calls("-m pip install")[0]
    ready.forget_calls()
    ready.run("status")
    ready.run("--dev", script=setup)
    assert ready.calls("-m pip") == []


def test_failed_install_is_shown_and_starts_over(machine: Machine) -> None:
    """Where pip fails, its last words are shown and nothing is run; the next call starts with a new .venv."""
    machine.say("no_space")
    ended = machine.run("jobs/x.yaml")
    assert (ended.exit_code, machine.calls("-m seedx_batch")) == (69, [])
    assert "no space left on device" in ended.stderr
    assert ".cache/setup.log" in ended.stderr

    (machine.fake / "no_space").unlink()
    machine.forget_calls()
    ended = machine.run("jobs/x.yaml")
    assert (ended.exit_code, len(machine.calls("-m venv"))) == (0, 1), ended.stderr


def test_killed_set_up_starts_over(machine: Machine) -> None:
    """A set-up that is killed while pip works leaves nothing that the next call would take for whole."""
    machine.say("hold")
    process = machine.start("jobs/x.yaml")
    wait_until((machine.fake / "installing").exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    (machine.fake / "hold").unlink()
    half_installed = machine.project / ".venv/half-installed"
    half_installed.touch()

    ended = machine.run("jobs/x.yaml")
    assert (ended.exit_code, half_installed.exists()) == (0, False), ended.stderr
    assert "interrupted" in ended.stderr


def test_killed_update_is_not_taken_for_the_old_environment(ready: Machine) -> None:
    """An update that is killed spoils the .venv for the lock it was made from too: going back to it starts over."""
    lock = ready.project / "requirements/cpu.lock"
    old = lock.read_text()
    lock.write_text(old + "# changed\n")
    ready.say("hold")
    (ready.fake / "installing").unlink()
    process = ready.start("status")
    wait_until((ready.fake / "installing").exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    (ready.fake / "hold").unlink()

    lock.write_text(old)
    ready.forget_calls()
    assert ready.run("status").exit_code == 0
    assert len(ready.calls("-m venv")) == 1


@pytest.mark.skipif(shutil.which("flock") is None, reason="set-ups wait for one another where util-linux is there")
def test_two_set_ups_wait_for_one_another(machine: Machine) -> None:
    """Of two calls on a new machine one installs, and the other waits and then uses what is there."""
    machine.say("hold")
    first = machine.start("jobs/x.yaml")
    wait_until((machine.fake / "installing").exists)
    second = machine.start("status")
    assert second.stderr is not None
    assert "waiting" in second.stderr.readline()
    (machine.fake / "hold").unlink()
    assert [Ended(first).exit_code, Ended(second).exit_code] == [0, 0]
    assert (len(machine.calls("-m venv")), len(machine.calls("-m pip install"))) == (1, 2)


@pytest.mark.parametrize(
    ("own_index", "pytorch_index", "num_installs", "index_is_added"),
    [
        ("2.13.0+cpu, 2.13.0", "2.13.0+cpu", 2, False),
        ("2.13.0", "2.13.0+cpu", 2, True),
        ("2.13.0", "", 3, False),
    ],
)
def test_where_torch_comes_from(
    machine: Machine, own_index: str, pytorch_index: str, num_installs: int, index_is_added: bool
) -> None:
    """A CPU build at hand needs no other index; else PyTorch's is added; else torch brings its dependencies."""
    machine.say("own_index", own_index)
    machine.say("pytorch_index", pytorch_index)
    assert machine.run("status").exit_code == 0
    installs = machine.calls("-m pip install")
    assert len(installs) == num_installs
    assert (f"--extra-index-url {PYTORCH_INDEX}" in installs[0]) == index_is_added
    if num_installs == 3:
        assert re.search(r"--constraint requirements/cpu.lock torch==\S+$", installs[0])
        assert "--no-deps" not in installs[0]


def test_no_python_is_said_plainly(machine: Machine) -> None:
    """Without a Python that can make a .venv it names what it looked for and leaves no .venv."""
    machine.say("no_venv_module")
    ended = machine.run("status")
    assert (ended.exit_code, (machine.project / ".venv").exists()) == (69, False)
    assert "no Python 3.11" in ended.stderr


def test_container_that_lacks_nothing_is_used_as_it_is(machine: Machine) -> None:
    """Where vllm and vllm_ascend are found, that Python runs the job: no .venv, no pip."""
    machine.say("ascend")
    ended = machine.run("jobs/x.yaml")
    assert (ended.arguments, ended.stderr) == (["run", "jobs/x.yaml"], "")
    assert machine.calls("-m pip") == machine.calls("-m venv") == []
    assert not (machine.project / ".venv").exists()


@pytest.mark.parametrize("how", ["found", "named"])
def test_foreign_python_gets_only_what_is_missing(machine: Machine, how: str) -> None:
    """In the vendor's container, and in SEEDX_BATCH_PYTHON, pip gets what is missing, and pins of all that is there."""
    machine.say("missing", "datasets>=3.0\ntqdm>=4.66\n")
    if how == "found":
        machine.say("ascend")
    named = "python3" if how == "named" else ""
    assert machine.run("jobs/x.yaml", SEEDX_BATCH_PYTHON=named).exit_code == 0
    assert machine.calls("-m pip") == [
        "-m pip install --no-input --constraint .cache/installed.txt datasets>=3.0 tqdm>=4.66"
    ]
    assert (machine.project / ".cache/installed.txt").read_text() == "torch==2.9.0\n"


def test_named_python_that_is_not_there(machine: Machine) -> None:
    """A SEEDX_BATCH_PYTHON that cannot be run is named, and nothing else is tried."""
    ended = machine.run("status", SEEDX_BATCH_PYTHON="no-such-python")
    assert (ended.exit_code, machine.calls("")) == (69, [])
    assert "no-such-python" in ended.stderr
