#!/usr/bin/env bash
# Makes a Python ready that can run this project and prints its path; says on standard error what it does.
#
#   requirements/setup.sh           what a job needs
#   requirements/setup.sh --dev     what the tests and checks need as well
#
# Which Python, in this order:
#   1. SEEDX_BATCH_PYTHON, if it is set;
#   2. python3, if vllm and vllm_ascend are there: the vendor's container;
#   3. .venv in the project's folder, made here with the packages of requirements/*.lock.
# 1 and 2 are not ours: packages that are missing are added, and nothing that is installed is ever replaced.
# A Python that is ready is only looked at: no pip, no network.

set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

readonly venv=.venv log=.cache/setup.log
readonly unfinished=$venv/.seedx-batch-unfinished
readonly torch_index=https://download.pytorch.org/whl/cpu
extras=(packaged) locks=(requirements/cpu.lock) marker=$venv/.seedx-batch-lock
if [ "${1-}" = --dev ]; then
    extras+=(dev) locks+=(requirements/dev.lock) marker=$venv/.seedx-batch-lock-dev
fi

say() {
    printf 'seedx-batch: %s\n' "$*" >&2
}

stop() {
    say "error: $*"
    exit 69
}

# Runs a command with its output in the log; where it fails, shows the end of what it said and stops.
logged() {
    printf '\n$ %s\n' "$*" >>"$log"
    if ! "$@" 2>&1 | tee -a "$log" | show_names; then
        say "this failed: $*"
        tail -n 15 "$log" >&2
        stop "the set-up did not finish; the whole log is $PWD/$log; run the same command again once the cause is gone"
    fi
}

# On a terminal, keeps the name of the package that pip is at on one line.
show_names() {
    local line
    while IFS= read -r line; do
        if [ -t 2 ] && [[ $line == Collecting* || $line == Installing* ]]; then
            printf '\r\033[K  %.76s' "${line%%(from*}" >&2
        fi
    done
    if [ -t 2 ]; then
        printf '\r\033[K' >&2
    fi
}

start_log() {
    mkdir -p .cache
    printf '%s: set-up of %s\n' "$(date)" "$PWD" >"$log"
}

# --- a Python that is not ours ------------------------------------------------------------------------------------------------

has_ascend() {
    "$1" -c '
import sys
from importlib.util import find_spec
found = [find_spec(name) for name in ("vllm", "vllm_ascend")]
sys.exit(not all(spec and spec.origin for spec in found))' 2>/dev/null
}

complete_foreign() {
    local python=$1 missing
    missing=$("$python" requirements/missing.py "${extras[@]}") || stop "$python cannot be used (it must be Python 3.11 or newer)"
    if [ -z "$missing" ]; then
        return
    fi
    start_log
    say "adding to $python: ${missing//$'\n'/, } (log: $log)"
    "$python" requirements/missing.py --pins >.cache/installed.txt
    # shellcheck disable=SC2086 # one requirement a line, none with blanks
    logged "$python" -m pip install --no-input --constraint .cache/installed.txt $missing
}

# --- our own .venv ------------------------------------------------------------------------------------------------------------

digest() {
    cat pyproject.toml "$@" | sha256sum | cut -d' ' -f1
}

is_ready() {
    [ -x "$venv/bin/python" ] && [ ! -e "$unfinished" ] && [ "$(cat "$marker" 2>/dev/null)" = "$(digest "${locks[@]}")" ]
}

find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11 python3.14; do
        if "$name" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
            printf '%s\n' "$name"
            return
        fi
    done
    stop "no Python 3.11 to 3.14 with its venv module on the PATH (python3 is $(python3 --version 2>&1 || true));" \
        "install one, for example with: apt install python3 python3-venv"
}

# Whether pip would find a CPU build of torch, with the options given.
offers_cpu_torch() {
    local versions
    versions=$(timeout 60 "$venv/bin/python" -m pip index versions torch "$@" 2>>"$log") || return 1
    [[ $versions == *"$torch+cpu"* ]]
}

# Puts into torch_options what pip needs to install a torch that runs here without its dependencies being resolved.
find_torch() {
    local torch
    torch=$(sed -n 's/^torch==//p' requirements/cpu.lock)
    torch_options=()
    if "$venv/bin/python" -c 'from importlib.metadata import version; import sys; sys.exit(version("torch").split("+")[0] != sys.argv[1])' \
        "$torch" 2>/dev/null; then
        return
    elif offers_cpu_torch; then
        say "torch: a CPU build of $torch from your own pip settings"
    elif offers_cpu_torch --timeout 5 --retries 0 --index-url "$torch_index"; then
        say "torch: the CPU build of $torch from $torch_index"
        torch_options=(--extra-index-url "$torch_index")
    else
        say "torch: there is no CPU build at hand and $torch_index does not answer;" \
            "taking the registry's build for GPUs with all it needs (several GB; it runs on the CPU)"
        logged "$venv/bin/python" -m pip install --no-input --constraint requirements/cpu.lock "torch==$torch"
    fi
}

make_venv() {
    local python lock started=$SECONDS
    local -a torch_options requirements=()
    if [ -e "$unfinished" ] || { [ -e "$venv" ] && [ ! -x "$venv/bin/python" ]; }; then
        say "removing what an interrupted set-up left in $venv"
        rm -rf "$venv"
        hash -r # python3 may have been the one that is gone
    fi
    if [ -e "$venv" ]; then
        say "bringing $venv up to date with ${locks[*]} (log: $log)"
        touch "$unfinished"
    else
        python=$(find_python)
        say "setting up $venv with $("$python" --version), once; this takes about two minutes (log: $log)"
        mkdir "$venv"
        touch "$unfinished"
        logged "$python" -m venv "$venv"
    fi
    for lock in "${locks[@]}"; do
        requirements+=(--requirement "$lock")
    done
    find_torch
    logged "$venv/bin/python" -m pip install --no-input --no-deps "${torch_options[@]}" "${requirements[@]}"
    logged "$venv/bin/python" -m pip install --no-input --no-deps --no-build-isolation --editable .
    digest requirements/cpu.lock >"$venv/.seedx-batch-lock"
    digest "${locks[@]}" >"$marker"
    rm "$unfinished"
    say "ready after $((SECONDS - started)) s"
}

make_venv_alone() {
    mkdir -p .cache
    if command -v flock >/dev/null; then
        exec 9>.cache/setup.lock
        if ! flock --nonblock 9; then
            say "another set-up of this folder is at work; waiting for it"
            flock 9
        fi
    fi
    if ! is_ready; then
        start_log
        make_venv
    fi
}

if [ -n "${SEEDX_BATCH_PYTHON-}" ]; then
    python=$(command -v "$SEEDX_BATCH_PYTHON") || stop "SEEDX_BATCH_PYTHON=$SEEDX_BATCH_PYTHON is no program that can be run"
    complete_foreign "$python"
elif has_ascend python3; then
    python=$(command -v python3)
    complete_foreign "$python"
else
    is_ready || make_venv_alone
    python=$PWD/$venv/bin/python
fi
printf '%s\n' "$python"
