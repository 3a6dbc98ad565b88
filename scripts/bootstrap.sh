#!/bin/sh
# Make .venv ready: `sh scripts/bootstrap.sh run` installs gpuctl, `... dev` also what its tests
# and checks need. Safe to run again; quick when nothing changed.
#
# Needs git, make and a Python of at least 3.11, named by $PYTHON or found on PATH. What Debian
# leaves out of its Python (venv) is installed with apt when this runs as root; else it says
# what to type. POSIX sh, because macOS still ships bash 3.2 and a bare Debian only dash.
set -eu

what=${1:-run}
case $what in
    run) extras="" ;;
    dev) extras="[dev]" ;;
    *) echo "bootstrap.sh: '$what' is neither 'run' nor 'dev'" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."

say() { echo "bootstrap: $*" >&2; }
die() { say "$*"; exit 1; }

is_root() { [ "$(id -u)" -eq 0 ]; }
has_apt() { command -v apt-get >/dev/null 2>&1; }
new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}
can_make_environments() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

apt_install() {
    say "installing $* with apt-get"
    DEBIAN_FRONTEND=noninteractive apt-get -qq update >/dev/null &&
        DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 \
            --no-install-recommends install "$@" >/dev/null
}

# The first Python that is new enough and can make environments; else the first new enough one.
find_python() {
    second=""
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 \
        /opt/homebrew/bin/python3 /usr/local/bin/python3 /usr/bin/python3}; do
        new_enough "$candidate" || continue
        if can_make_environments "$candidate"; then
            echo "$candidate"
            return
        fi
        second=${second:-$candidate}
    done
    echo "$second"
}

no_python() {
    if [ -n "${PYTHON:-}" ]; then
        die "PYTHON=$PYTHON is no Python of at least 3.11. Name another, or unset PYTHON."
    fi
    hint="Install one from https://www.python.org/downloads/"
    if has_apt; then hint="Install one: sudo apt-get install python3 python3-venv"; fi
    if [ "$(uname -s)" = Darwin ]; then hint="Install one: brew install python@3.13"; fi
    die "no Python of at least 3.11 was found. $hint (then run make again)."
}

no_venv() {
    if has_apt; then
        die "$1 cannot make virtual environments; Debian and Ubuntu ship that part separately." \
            "Run: sudo apt-get install $2 (then run make again)."
    fi
    die "$1 has no venv and ensurepip. Install a complete Python of at least 3.11, or name one:" \
        "make PYTHON=/path/to/python3"
}

choose_python() {
    python=$(find_python)
    if [ -z "$python" ] && [ -z "${PYTHON:-}" ] && is_root && has_apt; then
        apt_install python3 python3-venv || say "apt-get could not install python3"
        python=$(find_python)
    fi
    [ -n "$python" ] || no_python
    if ! can_make_environments "$python"; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        if is_root && has_apt; then
            apt_install "$package" || say "apt-get could not install $package"
        fi
        can_make_environments "$python" || no_venv "$python" "$package"
    fi
}

# What the environment was made from. It holds absolute paths, so the folder counts too.
key() {
    .venv/bin/python - <<'PYTHON'
import hashlib, os, sys
with open("pyproject.toml", "rb") as file:
    print(hashlib.sha256(file.read()).hexdigest(), sys.version.split()[0])
print(os.getcwd())
PYTHON
}

stamp=".venv/.gpuctl-$what"
if new_enough .venv/bin/python && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(key)" ]; then
    exit 0
fi

# A stamp from another folder: somebody moved the repository, and the scripts in .venv/bin with it,
# which still name the old folder.
moved() { [ -f .venv/.gpuctl-run ] && ! grep -qxF "$(pwd -P)" .venv/.gpuctl-run; }

if moved || ! new_enough .venv/bin/python; then
    choose_python
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    .venv/bin/python -m ensurepip --upgrade >/dev/null ||
        die ".venv has no pip and cannot get one. Remove the folder .venv and run make again."
fi

say "installing gpuctl$extras into .venv (takes a minute the first time)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --prefer-binary \
    --editable ".$extras" ||
    die "pip could not install gpuctl$extras, see above. It needs the network; run make again."

# The tests of the SSH transport want a real sshd, and skip with a word where there is none.
# sshd lives in sbin, which is on root's PATH only.
if [ "$what" = dev ] && ! PATH="$PATH:/usr/sbin:/sbin" command -v sshd >/dev/null 2>&1; then
    if is_root && has_apt; then
        apt_install openssh-server openssh-client ||
            say "apt-get could not install openssh-server; the tests that need sshd are skipped"
    elif has_apt; then
        say "the tests of SSH are skipped. For them: sudo apt-get install openssh-server"
    fi
fi

# Last, so that whatever broke before is tried again. `dev` holds everything that `run` needs.
key >".venv/.gpuctl-run"
if [ "$what" = dev ]; then key >".venv/.gpuctl-dev"; fi
