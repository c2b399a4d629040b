#!/usr/bin/env bash
# Makes the environment that mmpsw is tested in: a virtual environment with
# the pins of tools/requirements.txt, mmcv with its compiled operations, and
# this checkout installed in editable mode.
#
#     bash tools/setup.sh            makes it, or brings it up to date
#     bash tools/setup.sh --check    only says whether it is up to date
#
# What the environment variables do:
#
#     PYTHON           the interpreter to use (Python 3.10, 3.11 or 3.12)
#     MMPSW_VENV       where the environment goes, instead of .venv
#     PIP_FIND_LINKS   folders with wheels, such as an mmcv built before; all
#                      of pip's own settings are in force
#     MAX_JOBS         how many files of mmcv are compiled at once
#     FORCE_CUDA=1     CUDA operations on a machine without a GPU (it has nvcc)
#
# How an interrupted set-up is never trusted: the mark `.mmpsw-unfinished` is
# there from the first change to the last, and the stamp, which says what was
# installed, is written at the end. Whoever finds the mark starts over.

set -euo pipefail

mmcv_version=2.1.0
pip_version=26.0.1

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${MMPSW_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
venv=${venv%/}
python=$venv/bin/python
mark=$venv/.mmpsw-unfinished
stamp=$venv/.mmpsw-stamp
lock=$venv/.mmpsw-lock
log=$venv/mmpsw-setup.log

step=        # what is being done, for the message when it fails
child=       # the command that does it
explained=   # set once a failure has its sentence
discard=     # set while a stop leaves nothing behind but the lock
wheel=       # an mmcv wheel that pip found


# --- Saying --------------------------------------------------------------

say() { printf '[mmpsw] %s\n' "$*"; }

stop() {
    explained=yes
    printf '[mmpsw] Stopped: %s\n' "$*" >&2
    exit 1
}

duration() {
    if (($1 < 60)); then
        echo "$1 s"
    else
        echo "$(($1 / 60)) min $(($1 % 60)) s"
    fi
}

on_exit() {
    local status=$?
    trap - EXIT
    if [ -n "$child" ]; then
        kill -TERM -- "-$child" 2>/dev/null || true
    fi
    if [ "$status" -ne 0 ] && [ -z "$explained" ]; then
        say "Stopped: ${step:-the set-up} did not finish." >&2
    fi
    if [ "$status" -ne 0 ] && [ -n "$discard" ]; then
        clear_venv
        rm -f "$mark"
    elif [ "$status" -ne 0 ] && [ -e "$mark" ]; then
        say "The next set-up starts over; its downloads are kept by pip." >&2
    fi
    exit "$status"
}


# --- The state of the environment ----------------------------------------

find_nvcc() {
    local candidate
    for candidate in "${CUDA_HOME:-/nonexistent}/bin/nvcc" \
            "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
        if [ -x "$candidate" ]; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

accelerator() {
    if find_nvcc >/dev/null && { [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; }
    then
        echo present
    else
        echo absent
    fi
}

# Where it is and on which Python: an environment in which this has changed
# can't be mended in place.
identity() {
    local version='import sys; print("%d.%d.%d" % sys.version_info[:3])'
    echo "venv $venv"
    echo "python $("$python" -ISc "$version" 2>/dev/null || echo none)"
}

contents() {
    local sum
    sum=$(cat "$root/tools/requirements.txt" "$root/tools/setup.sh" \
        "$root/setup.py" "$root/mmpsw/version.py" | sha256sum)
    echo "checkout $root"
    echo "pins ${sum%% *}"
}

# Operations for the CPU are good until a GPU and its compiler turn up.
operations() {
    if [ "$1" = cuda ]; then
        echo 'operations cuda'
    else
        echo "operations cpu, CUDA $(accelerator)"
    fi
}

up_to_date() {
    local ops=cpu
    [ -e "$stamp" ] && [ ! -e "$mark" ] || return 1
    ! grep -qx 'operations cuda' "$stamp" || ops=cuda
    [ "$ops" = cuda ] || [ "${FORCE_CUDA:-0}" != 1 ] || return 1
    [ "$(cat "$stamp")" = "$(identity; contents; operations "$ops")" ]
}

same_identity() {
    [ -e "$stamp" ] && [ ! -e "$mark" ] &&
        [ "$(head -n 2 "$stamp")" = "$(identity)" ]
}

# Only what this script made may be cleared.
is_ours() {
    local found
    [ -e "$venv" ] || return 0
    [ -d "$venv" ] || return 1
    [ -e "$mark" ] || [ -e "$stamp" ] && return 0
    found=$(find "$venv" -mindepth 1 -maxdepth 1 ! -name "${lock##*/}" |
        head -n 1)
    [ -z "$found" ]
}

# The lock stays, because others may be waiting for it, and so does the mark,
# because it says whose the rest is.
clear_venv() {
    : >"$mark"
    find "$venv" -mindepth 1 -maxdepth 1 ! -name "${lock##*/}" \
        ! -name "${mark##*/}" -exec rm -rf {} +
}

take_lock() {
    is_ours || stop "$venv exists and was not made by this script: move it" \
        "away, or choose another place with MMPSW_VENV=..."
    mkdir -p "$venv" || stop "$venv can't be made: choose another place" \
        "with MMPSW_VENV=..."
    command -v flock >/dev/null || return 0
    # Commands inherit the lock. So a pip that has outlived a killed set-up
    # is waited for, instead of writing into the environment of the next one.
    exec 9>"$lock"
    flock -n 9 || {
        say "Another set-up of $venv is at work (or still stopping): waiting"
        flock 9
    }
}


# --- Running -------------------------------------------------------------

# run TITLE ABOUT STATUS COMMAND...: runs a command into the log and shows
# that it is alive, on one line of a terminal or with a line a minute. STATUS
# is a function that says how far the command is.
run() {
    step=$1
    local about=$2 status=$3 start=$SECONDS told=$SECONDS
    shift 3
    say "$step (about $about)"
    printf '\n=== %s\n' "$step" >>"$log"
    set -m   # a process group of its own, so that all of it can be stopped
    "$@" >>"$log" 2>&1 </dev/null &
    child=$!
    set +m
    while kill -0 "$child" 2>/dev/null; do
        if [ -t 1 ]; then
            printf '\r\033[K        %s, %s' \
                "$(duration $((SECONDS - start)))" "$("$status")"
        elif ((SECONDS - told >= 60)); then
            told=$SECONDS
            printf '        %s, %s\n' \
                "$(duration $((SECONDS - start)))" "$("$status")"
        fi
        sleep 0.5
    done
    [ ! -t 1 ] || printf '\r\033[K'
    wait "$child" || failed "$?"
    child=
    say "    done in $(duration $((SECONDS - start)))"
}

failed() {
    child=
    tail -n 30 "$log" | cut -c 1-300 >&2 || true
    [ -z "$discard" ] || stop "\"$step\" failed: its output is above"
    stop "\"$step\" failed with status $1: the end of its output is above," \
        "all of it is in $log"
}

last_line() { tail -n 1 "$log" | cut -c 1-60; }

# pip says nothing while it unpacks.
packages_installed() {
    local count
    count=$(find "$venv/lib" -maxdepth 4 -name '*.dist-info' | wc -l)
    if tail -n 30 "$log" | grep -q '^Installing collected'; then
        echo "$count packages installed"
    else
        last_line
    fi
}

objects_compiled() {
    local ops='.*/ops/csrc/pytorch/\(cpu/\)?[^/]*\.cpp' total
    [ "$want" = cpu ] ||
        ops='.*/ops/csrc/pytorch/\(cpu/\|cuda/\)?[^/]*\.\(cpp\|cu\)'
    # The build copies them to its lib folder too.
    total=$(find "$build" -regex "$ops" ! -path '*/build/lib*' 2>/dev/null |
        wc -l)
    echo "$(find "$build" -name '*.o' 2>/dev/null | wc -l) of $total" \
        'files compiled'
}

# An isolated Python: the user's PYTHONPATH is not part of the environment.
# pip stays in the caller's folder, to which PIP_FIND_LINKS may be relative.
py() { "$python" -I "$@"; }
pip() { PIP_USER=0 py -m pip --disable-pip-version-check --no-input "$@"; }


# --- What the machine has ------------------------------------------------

probe='
import os, sys, sysconfig
try:
    import ensurepip, venv
    has_venv = "venv"
except ImportError:
    has_venv = "-"
include = sysconfig.get_path("include")
has_headers = os.path.exists(os.path.join(include, "Python.h"))
print("%d.%d" % sys.version_info[:2], has_venv,
      "headers" if has_headers else "-")
'

# Sets `base` to an interpreter that has all it needs, or at least a venv.
find_python() {
    local candidates=(python3 python3.12 python3.11 python3.10)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    local candidate facts version venv_less='' others='' second=''
    base=
    for candidate in "${candidates[@]}"; do
        # Really run: the name may be a shim that only fails when called.
        facts=$("$candidate" -c "$probe" 2>/dev/null) || continue
        version=${facts%% *}
        case $facts in
        3.1[012]' venv headers') base=$candidate; break ;;
        3.1[012]' venv -') second=${second:-$candidate} ;;
        3.1[012]' '*) venv_less=${venv_less:-"$candidate $version"} ;;
        *) others="$others${others:+, }$candidate is $version" ;;
        esac
    done
    base=${base:-$second}
    [ -z "$base" ] || return 0
    [ -z "$venv_less" ] || stop "the Python ${venv_less#* } that" \
        "${venv_less% *} runs has no venv module: install it" \
        "(python${venv_less#* }-venv on Debian and Ubuntu)."
    stop "Python 3.10, 3.11 or 3.12 is needed; tried ${candidates[*]}" \
        "(${others:-none of them runs}). Install one of them, or name it" \
        "with PYTHON=..."
}

find_compiler() {
    local candidate
    for candidate in "${CXX:-}" c++ g++; do
        if [ -n "$candidate" ] && command -v $candidate >/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# Compiles and links one small extension, as mmcv does.
need_compiler() {
    local cxx include probe_dir why="mmcv has to be compiled"
    cxx=$(find_compiler) && command -v "${CC:-gcc}" >/dev/null ||
        stop "$why, and gcc with g++ is missing: install it" \
            "(build-essential on Debian and Ubuntu)."
    include=$(py -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$include/Python.h" ] ||
        stop "$why, and the headers of this Python are missing" \
            "($include/Python.h): install them (python3-dev on Debian and" \
            "Ubuntu), or name another Python with PYTHON=..."
    probe_dir=$(mktemp -d "$venv/probe.XXXXXX")
    printf '#include <Python.h>\n#include <optional>\nint x;\n' \
        >"$probe_dir/probe.cpp"
    $cxx -std=c++17 -shared -fPIC "-I$include" "$probe_dir/probe.cpp" \
        -o "$probe_dir/probe.so" >>"$log" 2>&1 ||
        stop "$why, and $cxx can't compile a C++17 extension:" \
            "$(tail -n 1 "$log" | cut -c 1-200)"
    rm -rf "$probe_dir"
}


# --- mmcv ----------------------------------------------------------------

# One folder for each kind of wheel; TORCH may be a pattern.
cache_dir() {
    local torch=$1 ops=$2 tag
    local home=${XDG_CACHE_HOME:-${HOME:-$venv}/.cache}/mmpsw
    tag=$(py -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    echo "$home/mmcv-$mmcv_version-torch$torch-$tag-$(uname -m)-$ops"
}

# Sets `wheel` if pip finds one. Whether it fits torch is seen only later.
find_wheel() {
    rm -rf "$venv/wheels"
    pip download --quiet --no-deps --only-binary mmcv --dest "$venv/wheels" \
        "mmcv==$mmcv_version" >>"$log" 2>&1 </dev/null || return 0
    wheel=$(find "$venv/wheels" -name 'mmcv-*.whl' | head -n 1)
}

# Before torch is there, its exact name and the GPU's are unknown.
find_cached() {
    local torch ops=cpu
    torch=$(sed -n 's/^torch==//p' "$root/tools/requirements.txt")
    [ "$(accelerator)" = absent ] && [ "${FORCE_CUDA:-0}" != 1 ] || ops=cuda*
    compgen -G "$(cache_dir "$torch*" "$ops")/mmcv-*.whl" >/dev/null
}

# Sets `want` to cpu or cuda, and `kind` to the cache's name for it.
choose_operations() {
    local seen cuda capability nvcc nvcc_cuda=
    read -r seen cuda capability < <(py -c '
import torch
seen = torch.cuda.is_available()
capability = torch.cuda.get_device_capability() if seen else "any"
print(seen, torch.version.cuda, "".join(map(str, capability)))')
    want=cpu
    kind=cpu
    if nvcc=$(find_nvcc); then
        nvcc_cuda=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    fi
    if [ "$seen" = False ] && [ "${FORCE_CUDA:-0}" != 1 ]; then
        return
    elif [ -n "$nvcc" ] && [ "${nvcc_cuda%%.*}" = "${cuda%%.*}" ]; then
        want=cuda
        kind=cuda$cuda-sm$capability
        [ -z "${TORCH_CUDA_ARCH_LIST:-}" ] || kind=cuda$cuda-sm$( # several
            tr -c 'A-Za-z0-9.+\n' _ <<<"$TORCH_CUDA_ARCH_LIST")
    elif [ "${FORCE_CUDA:-0}" = 1 ]; then
        stop "FORCE_CUDA=1 needs an nvcc of CUDA $cuda, which torch was" \
            "built with; found ${nvcc:-none} ${nvcc_cuda}."
    else
        say "torch sees a GPU, but mmcv's operations (non-maximum" \
            "suppression, RoIAlign) are made for the CPU only, because" \
            "there is no nvcc of CUDA $cuda (found ${nvcc:-none}" \
            "${nvcc_cuda}). Detectors need it to train on the GPU: install" \
            "it and run this again, or train with CUDA_VISIBLE_DEVICES=''."
    fi
}

# Runs one compiled operation: a wheel built for another torch fails here.
mmcv_operations() {
    py -c '
import sys
import mmcv
import torch
from mmcv.ops import get_compiling_cuda_version, nms
boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 8.], [20., 0., 29., 9.]])
kept = nms(boxes, torch.tensor([.9, .8, .7]), .5)[1].tolist()
assert mmcv.__version__ == sys.argv[1] and kept == [0, 2], (mmcv, kept)
cpu = get_compiling_cuda_version() == "not available"
print("cpu" if cpu else "cuda")' "$mmcv_version" 2>>"$log"
}

mmcv_is_usable() {
    local ops
    ops=$(mmcv_operations) && { [ "$want" = cpu ] || [ "$ops" = cuda ]; }
}

install_wheel() {
    pip install --force-reinstall --no-deps --no-index "$1"
}

install_mmcv() {
    local cached file
    choose_operations
    ! mmcv_is_usable || return 0
    [ -n "$wheel" ] || find_wheel
    cached=$(cache_dir "$(py -c 'import torch; print(torch.__version__)')" \
        "$kind")
    for file in $wheel "$cached"/mmcv-*.whl; do
        [ -e "$file" ] || continue
        run "Installing ${file##*/}" '10 s' last_line install_wheel "$file"
        ! mmcv_is_usable || return 0
        say "    it does not work with this torch: trying the next way"
    done
    need_compiler
    build_mmcv "$cached"
    mmcv_is_usable || {
        tail -n 30 "$log" | cut -c 1-300 >&2
        stop "mmcv was built, and its operations don't work: the reason is" \
            "above, all of the output is in $log"
    }
}

jobs_for_build() {
    local cores memory
    cores=$(nproc)
    # Compiling one file takes up to 1.5 GB.
    memory=$(awk '/MemAvailable/ {print int($2 / 1.5e6)}' /proc/meminfo)
    [ "${memory:-$cores}" -ge "$cores" ] && echo "$cores" ||
        echo "$((memory > 1 ? memory : 1))"
}

# pip's cache is not asked: its mmcv may have been built for another torch.
# Nor is the lock handed on: what is left of a killed build does no harm.
compile_mmcv() {
    local cuda_env=(FORCE_CUDA=1)
    # mmcv builds CUDA operations whenever torch sees a GPU.
    [ "$want" = cuda ] || cuda_env=(FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=)
    env "${cuda_env[@]}" MMCV_WITH_OPS=1 "MAX_JOBS=$jobs" "CXX=$cxx" \
        "CFLAGS=${CFLAGS:-} -g0" "TMPDIR=$build" "PATH=$venv/bin:$PATH" \
        "$python" -I -m pip --disable-pip-version-check --no-input wheel -v \
        --no-cache-dir --no-binary mmcv --no-build-isolation --no-deps \
        --wheel-dir "$build/wheel" "mmcv==$mmcv_version" 9>&-
}

build_mmcv() {
    local cached=$1 jobs build cxx built
    jobs=${MAX_JOBS:-$(jobs_for_build)}
    cxx=$(find_compiler)
    build=$(mktemp -d "$venv/build.XXXXXX")
    run "Compiling mmcv $mmcv_version for the $want, $jobs files at once" \
        '20 minutes on two cores' objects_compiled compile_mmcv
    built=$(find "$build/wheel" -name 'mmcv-*.whl')
    run "Installing ${built##*/}" '10 s' last_line install_wheel "$built"
    keep_wheel "$built" "$cached" ||
        say "    the wheel could not be kept in $cached for the next time"
    rm -rf "$build"
}

# By renaming, so that nobody finds half a wheel.
keep_wheel() {
    mkdir -p "$2" 2>>"$log" && cp "$1" "$2/.$$" 2>>"$log" &&
        mv -f "$2/.$$" "$2/${1##*/}"
}


# --- The steps -----------------------------------------------------------

# Whatever could stop the set-up is looked at before torch is downloaded.
start_over() {
    clear_venv
    : >"$log"
    discard=yes
    run "Making $venv on $base" '5 s' last_line "$base" -m venv "$venv"
    step='looking for an mmcv wheel'
    find_wheel
    [ -n "$wheel" ] || find_cached || need_compiler
    discard=
}

# On a machine without a desktop, OpenCV misses libGL and the like.
mend_opencv() {
    local error version
    error=$(py -c 'import cv2' 2>&1) && return 0
    case $error in
    *'cannot open shared object file'*) ;;
    *) stop "OpenCV can't be imported: $(tail -n 1 <<<"$error")" ;;
    esac
    version=$(sed -n 's/^opencv-python==//p' "$root/tools/requirements.txt")
    error=${error%%: cannot open shared*}
    run "Taking the OpenCV that does without ${error##* }" '10 s' last_line \
        headless_opencv "$version"
}

headless_opencv() {
    pip uninstall --yes opencv-python opencv-python-headless &&
        pip install --no-deps "opencv-python-headless==$1" && py -c 'import cv2'
}

install_all() {
    local pins=$root/tools/requirements.txt
    run "Installing pip $pip_version" '5 s' last_line \
        pip install "pip==$pip_version"
    run 'Installing the pinned requirements, 3 GB to download' \
        '3 to 6 minutes' packages_installed \
        pip install --requirement "$pins"
    mend_opencv
    step='installing mmcv'
    install_mmcv
    run "Installing mmpsw from $root" '5 s' last_line \
        pip install --no-deps --no-build-isolation --editable "$root"
}

write_stamp() {
    local ops
    ops=$(mmcv_operations)
    { identity; contents; operations "$ops"; } >"$stamp.new"
    mv -f "$stamp.new" "$stamp"
    rm -f "$mark"
}

main() {
    case ${1:-} in
    '') ;;
    --check)
        up_to_date && { say "$venv is up to date"; exit 0; }
        say "$venv is not up to date: run bash tools/setup.sh"
        exit 1 ;;
    *) stop "unknown option $1: see the top of tools/setup.sh" ;;
    esac
    ! up_to_date || return 0
    trap on_exit EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    unset PYTHONHOME __PYVENV_LAUNCHER__
    take_lock
    ! up_to_date || return 0
    is_ours || take_lock   # it says why not
    if same_identity; then
        say "Bringing $venv up to date"
        : >"$mark"
        : >"$log"
    else
        say "Setting up mmpsw: 5 minutes, and up to 20 more if mmcv has to" \
            "be compiled; 8 GB on the disk, with what pip keeps"
        find_python
        start_over
    fi
    install_all
    step='writing the stamp'
    write_stamp
    say "Ready after $(duration $SECONDS): $venv"
}

main "$@"
exit   # bash must not read on, should this file have changed meanwhile
