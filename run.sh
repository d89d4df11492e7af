#!/usr/bin/env bash
# Make the environment where it is missing, then hand over to the command line: ./run.sh --help
#
# .venv is made once from .lock/ (exact versions, hashes). The copy of the lock inside it is the stamp: it is
# written last, so a half-made environment has none and is made anew. `test` adds the development set.
set -euo pipefail
umask 022

self=${BASH_SOURCE[0]}
while [ -L "$self" ]; do
    link=$(readlink "$self")
    case $link in /*) self=$link ;; *) self=${self%/*}/$link ;; esac
done
case $self in */*) root=${self%/*} ;; *) root=. ;; esac
root=$(cd "$root" && pwd -P)
venv=$root/.venv
unset PYTHONHOME
export PYTHONSAFEPATH=1 # a file in the caller's directory must not shadow a library

say() { printf 'mitmgate: %s\n' "$*" >&2; }

# A version manager's shim is on PATH also where it does not run: ask each candidate, never its name.
usable() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        if usable "$PYTHON"; then printf '%s\n' "$PYTHON" && return; fi
        say "PYTHON=$PYTHON is not a Python >= 3.12 that runs and has venv and ensurepip"
        return 2
    fi
    for candidate in python3.14 python3.13 python3.12 python3; do
        if usable "$candidate"; then printf '%s\n' "$candidate" && return; fi
    done
    for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python3; do
        if usable "$candidate"; then printf '%s\n' "$candidate" && return; fi
    done
    if candidate=$(uv python find --no-python-downloads '>=3.12' 2>/dev/null) && usable "$candidate"; then
        printf '%s\n' "$candidate" && return
    fi
    say "no Python >= 3.12 with venv found (looked at python3.14 to python3 on PATH, pyenv and uv);" \
        "install one, or name it: PYTHON=/path/to/python3 ./run.sh"
    return 2
}

stamped() { # $1: runtime or dev
    [ -x "$venv/bin/python" ] && cmp -s "$root/.lock/$1.txt" "$venv/$1.lock"
}

install() { # $1: runtime or dev; pip's own words only when it fails
    local log=$venv/pip.log
    if ! "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --no-deps --require-hashes \
        --only-binary :all: --requirement "$root/.lock/$1.txt" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        say "could not install the packages of .lock/$1.txt (pip's words are above)"
        return 1
    fi
}

make_environment() { # $1: runtime or dev
    local python started=$SECONDS
    python=$(find_python) || return
    # flock(2) through the Python at hand: the lock belongs to this shell's open file, so it outlives the child.
    exec 9>"$root/.venv.lock"
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    if ! stamped "$1"; then
        if ! stamped runtime; then
            say "making .venv once (about half a minute)"
            rm -rf "$venv"
            "$python" -m venv "$venv"
            local site
            for site in "$venv"/lib/python3.*/site-packages; do
                echo ../../../../addons >"$site/mitmgate.pth"
            done
        else
            say "adding the packages of .lock/$1.txt to .venv"
        fi
        install "$1"
        # `serve` runs with -O, for which pip has compiled nothing; a start that compiles takes three times as long.
        env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -O -c 'import mitmgate.host.serve, dns.asyncresolver'
        cp "$root/.lock/$1.txt" "$venv/$1.lock"
        cp "$root/.lock/runtime.txt" "$venv/runtime.lock"
        say "environment ready after $((SECONDS - started)) s"
    fi
    exec 9>&-
}

if [ "${1:-}" = test ]; then
    shift
    stamped dev || make_environment dev
    exec "$root/.ci/checks" "$@"
fi
if [ "${1:-}" = mutants ]; then
    shift
    stamped dev || make_environment dev
    cd "$root"
    PYTHONPATH=$root exec "$venv/bin/python" -m tests.mutation "$@"
fi
stamped runtime || make_environment runtime
# Production runs without assert statements: mitmproxy has many on the path of a request, and none of ours decides anything.
if [ "${1:-}" = serve ]; then exec "$venv/bin/python" -O -m mitmgate "$@"; fi
exec "$venv/bin/python" -m mitmgate "$@"
