#!/bin/sh
# Prepare a bare Ubuntu or Debian machine, or a container, for training: the driver and its CUDA
# checked, a Python environment with the torch that fits the driver, git-lfs, tmux.
#
#   sudo sh setup-machine.sh               do what is missing; a second time changes nothing
#   sh setup-machine.sh --dry-run          only say what would be done
#
#   --venv DIR      the environment (default /opt/gpuctl/venv, or $SETUP_VENV). gpuctl gives the
#                   jobs on a borrowed machine a Python on top of this one.
#   --torch SPEC    which torch (default "torch", or $SETUP_TORCH), such as torch==2.8.0
#   --no-torch      none (or SETUP_TORCH=none)
#   --aws           also the AWS command line, in the environment (or SETUP_AWS=yes)
#   --index URL     where its wheels are, a folder for each CUDA below it
#                   (default https://download.pytorch.org/whl, or $SETUP_TORCH_INDEX)
#
# It works as user-data as it is (cloud-init runs it as root at the first boot, and writes what it
# says to /var/log/cloud-init-output.log); what it is told then comes from the variables.
# Exit codes: 0 ready, 1 something is missing (it says what), 2 wrong usage.
# POSIX sh: a bare Debian has only dash.
set -eu

venv=${SETUP_VENV:-/opt/gpuctl/venv}
torch=${SETUP_TORCH:-torch}
index=${SETUP_TORCH_INDEX:-https://download.pytorch.org/whl}
aws=${SETUP_AWS:-}
dry=
changes=0

say() { printf '%s\n' "setup-machine: $*"; }
die() { say "$*" >&2; exit 1; }
usage() { say "$*; see the top of this file" >&2; exit 2; }

while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry=yes ;;
        --no-torch) torch=none ;;
        --aws) aws=yes ;;
        --venv | --torch | --index)
            [ $# -gt 1 ] || usage "$1 needs a value"
            case $1 in --venv) venv=$2 ;; --torch) torch=$2 ;; --index) index=$2 ;; esac
            shift ;;
        *) usage "'$1' is no option" ;;
    esac
    shift
done

# cloud-init starts scripts without these.
HOME=${HOME:-/root} DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1
export HOME DEBIAN_FRONTEND PIP_DISABLE_PIP_VERSION_CHECK
unset PIP_USER PYTHONHOME || true

has() { command -v "$1" >/dev/null 2>&1; }

# Do something that changes the machine, or with --dry-run say it.   change WHAT COMMAND...
change() {
    what=$1
    shift
    changes=$((changes + 1))
    if [ -n "$dry" ]; then
        say "would: $what"
        return
    fi
    "$@" || die "failed: $what"
    say "did: $what"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif has sudo && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        die "this needs root: sudo $*"
    fi
}

# ------------------------------------------------------------------------ driver and CUDA

# The CUDA of the wheels that a driver runs. A driver runs every CUDA of its own major version
# (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
cuda_of_driver() {
    if [ "$1" -ge 580 ]; then
        echo cu130
    elif [ "$1" -ge 570 ]; then
        echo cu128
    elif [ "$1" -ge 525 ]; then
        echo cu126
    else
        echo none
    fi
}

wheels=cpu
if has nvidia-smi && driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1) \
    && [ -n "$driver" ]; then
    wheels=$(cuda_of_driver "${driver%%.*}")
    [ "$wheels" != none ] ||
        die "the NVIDIA driver $driver is too old for any torch of today; 525 or newer is needed"
    cards=$(nvidia-smi --query-gpu=name --format=csv,noheader | sort | uniq -c | sed 's/^ *//' | paste -s -d , -)
    say "ok: $cards; driver $driver, torch for $wheels"
elif grep -qi '^[0-9a-f]*[[:space:]]*10de' /proc/bus/pci/devices 2>/dev/null; then
    die "there is an NVIDIA card and no driver that answers; install one (ubuntu-drivers install --gpgpu) and reboot"
else
    say "ok: no NVIDIA card, torch for CPUs"
fi

# ---------------------------------------------------------------------------- packages

missing=
has git || missing="$missing git"
has git-lfs || missing="$missing git-lfs"
has tmux || missing="$missing tmux"
has python3 || missing="$missing python3"
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"

install_packages() {
    has apt-get || die "install these with this system's own tool, and run again: $*"
    # At a first boot the system updates itself: wait for its lock.
    as_root apt-get -qq -o DPkg::Lock::Timeout=300 update >/dev/null
    as_root apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
        --no-install-recommends install "$@" >/dev/null
}

if [ -n "$missing" ]; then
    # shellcheck disable=SC2086  # words
    change "install$missing" install_packages $missing
else
    say "ok: git, git-lfs, tmux, python3 with venv"
fi

if [ -n "$(git config --global --get filter.lfs.process 2>/dev/null)" ]; then
    say "ok: git-lfs is set up for $(id -un)"
else
    change "set git-lfs up for $(id -un)" git lfs install --skip-repo
fi

# ------------------------------------------------------------------------- environment

make_environment() {
    # Half an environment, of an earlier try that was cut off, is made anew.
    if [ -w "$(dirname "$(dirname "$venv")")" ] || [ -w "$(dirname "$venv")" ]; then
        python3 -m venv --clear "$venv"
    else
        as_root python3 -m venv --clear "$venv"
    fi
}

if "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    say "ok: $venv"
else
    change "make the Python environment $venv" make_environment
fi

torch_there() {
    "$venv/bin/python" -c \
        'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true
}

install_torch() {
    "$venv/bin/python" -m pip install --quiet --no-input --no-cache-dir \
        --index-url "$index/$wheels" "$torch"
}

fits() {
    case $1 in *+"$wheels") ;; *) return 1 ;; esac
    case $torch in *==*) [ "${1%+*}" = "${torch##*==}" ] ;; *) true ;; esac
}

if [ "$torch" != none ]; then
    found=$(torch_there)
    if fits "$found"; then
        say "ok: torch $found"
    else
        change "install $torch for $wheels${found:+ (found $found)}" install_torch
    fi
    if [ -z "$dry" ] && [ "$wheels" != cpu ]; then
        "$venv/bin/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
            die "torch $(torch_there) sees no GPU; look at nvidia-smi, and at dmesg"
    fi
fi

if [ -n "$aws" ]; then
    if has aws || [ -x "$venv/bin/aws" ]; then
        say "ok: the AWS command line"
    else
        change "install the AWS command line" \
            "$venv/bin/python" -m pip install --quiet --no-input --no-cache-dir awscli
    fi
fi

if [ "$changes" -eq 0 ]; then
    say "ready; nothing changed"
elif [ -n "$dry" ]; then
    say "$changes to do"
else
    say "ready; $changes changed"
fi
