#!/usr/bin/env bash
# Runs a job, or any other subcommand, on this machine; sets the machine up first if that was not done yet.
#
#   ./run_job.sh jobs/quickstart.yaml               run a job, or go on with it where it was stopped
#   ./run_job.sh jobs/zh_en.yaml --limit 100        every argument is passed on
#   ./run_job.sh status runs/zh_en                  any other subcommand of seedx-batch; none shows the help
#
# Slurm:  sbatch run_job.sh jobs/zh_en.yaml         submitted from this folder, with your partition and devices
# cron:   0 1 * * *  /path/to/run_job.sh jobs/zh_en.yaml >>/path/to/zh_en.log 2>&1
# The last thing it does is exec, so signals reach the program and its exit code comes back: 75 means stopped early,
# or that another run holds the folder: run the same again; 65 that too many rows fail, which does not mend itself. README.md has them all.
#
# It works in the project's folder: relative paths start there, except that the job file is also looked for where you are.
#   SEEDX_BATCH_PYTHON   the Python to use instead of .venv (needed under cron where the PATH lacks your container's Python)
#   SEEDX_BATCH_HOME     the project's folder, where it cannot be told from this script's place
#
# Two minutes before Slurm's time limit the job is told to stop in order; the next submission goes on from there.
#SBATCH --signal=B:USR2@120
#SBATCH --open-mode=append

set -euo pipefail

stop() {
    printf 'seedx-batch: error: %s\n' "$1" >&2
    exit 78
}

is_project() {
    grep -qs '^name = "seedx-batch"$' "$1/pyproject.toml"
}

project_folder() {
    local beside
    if [ -n "${SEEDX_BATCH_HOME-}" ]; then
        is_project "$SEEDX_BATCH_HOME" || stop "SEEDX_BATCH_HOME=$SEEDX_BATCH_HOME does not hold this project; unset it or correct it"
        printf '%s\n' "$SEEDX_BATCH_HOME"
        return
    fi
    beside=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
    if is_project "$beside"; then
        printf '%s\n' "$beside"
    elif is_project "${SLURM_SUBMIT_DIR-}"; then # Slurm runs a copy of this script from a spool folder
        printf '%s\n' "$SLURM_SUBMIT_DIR"
    else
        stop "cannot find the project's folder from $beside; submit from that folder, or set SEEDX_BATCH_HOME to it"
    fi
}

started_in=$PWD
home=$(project_folder)
cd "$home"
python=$(requirements/setup.sh)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" # a container's Python does not have the project installed

if [ $# -eq 0 ]; then
    set -- --help
elif [[ $1 == *.yaml || $1 == *.yml || -f $1 ]]; then
    if [[ $1 != /* && -f $started_in/$1 && ! $started_in -ef . ]]; then
        set -- "$started_in/$1" "${@:2}"
    fi
    set -- run "$@"
fi
exec "$python" -m seedx_batch "$@"
