#!/usr/bin/env bash
# Writes cpu.lock and dev.lock from pyproject.toml; needs uv and the package registry. Pins that still fit stay as they are:
# to move one, change its line in the lock first; to move all, empty the locks.

set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

# Resolves the extras given for Python 3.11 and newer on every machine; writes to standard output what Linux can use.
resolve() {
    cat cpu.lock dev.lock >pins.txt
    uv pip compile ../pyproject.toml --config-file uv.toml --universal --python-version 3.11 --no-annotate --no-header --quiet \
        --output-file pins.txt "$@" >/dev/null
    sed -E "/sys_platform == '(win32|emscripten)'/d" pins.txt
    rm pins.txt
}

touch cpu.lock dev.lock
cpu=$(resolve --extra cpu --extra packaged)
all=$(resolve --extra cpu --extra packaged --extra dev)
{
    echo "# What a job needs on a machine without accelerator, complete: install with --no-deps. Made by requirements/lock.sh."
    printf '%s\n' "$cpu"
} >cpu.lock
{
    echo "# What the tests and checks need besides cpu.lock. Made by requirements/lock.sh."
    printf '%s\n' "$all" | grep -vxF -f cpu.lock
} >dev.lock
