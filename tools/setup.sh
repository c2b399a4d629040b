#!/usr/bin/env bash
# Makes the environment that mmpsw is tested in: a virtual environment with
# the pins of tools/requirements*.txt, mmcv with its compiled operations, and
# this checkout, in which changes take effect at once.
#
#     bash tools/setup.sh            makes it, or brings it up to date
#     bash tools/setup.sh --check    only says whether it is up to date
#
# What the environment variables do:
#
#     MMPSW_STACK      openmmlab (the default), or onedl: its maintained forks
#     PYTHON           the interpreter to use (Python 3.10, 3.11 or 3.12)
#     MMPSW_VENV       where the environment goes, instead of .venv, or of
#                      .venv-onedl with MMPSW_STACK=onedl
#     PIP_FIND_LINKS   folders with wheels, such as an mmcv built before; all
#                      of pip's own settings are in force
#     MAX_JOBS         how many files of mmcv are compiled at once
#     FORCE_CUDA=1     CUDA operations on a machine without a GPU (it has nvcc)
#
# The stamp is a file in the environment that says what was installed. It is
# empty from the first change to the last: who finds it so starts over. It
# also marks the environment as ours, and is the lock against two set-ups.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
pins=$root/tools/requirements.txt
stack=$root/tools/requirements_${MMPSW_STACK:-openmmlab}.txt
venv=${MMPSW_VENV:-$root/.venv${MMPSW_STACK:+-$MMPSW_STACK}}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
stamp=$venv/.mmpsw-stamp
log=$venv/mmpsw-setup.log
operations=cpu   # or cuda: which of mmcv's operations are wanted

say() { printf '[mmpsw] %s\n' "$*"; }
stop() { printf '[mmpsw] Stopped: %s\n' "$*" >&2; exit 1; }

# Isolated: the user's PYTHONPATH is not part of the environment.
py() { "$venv/bin/python" -I "$@"; }
pip() { PIP_USER=0 py -m pip --disable-pip-version-check --no-input "$@"; }

find_nvcc() {   # where torch looks for it
    PATH=${CUDA_HOME:+$CUDA_HOME/bin:}$PATH:/usr/local/cuda/bin command -v nvcc
}

# What the stamp says in the end. Where the first line has changed, the
# environment can't be mended in place.
new_stamp() {
    echo "$venv, $("$venv/bin/python" -V 2>/dev/null || echo 'no Python')"
    echo "$root, pins $(cd "$root" && cat "$pins" "$stack" \
        tools/setup.sh setup.py | sha256sum)"
    echo "nvcc $(find_nvcc), FORCE_CUDA=${FORCE_CUDA:-0}, GPU" \
        "$(ls /dev/nvidiactl /dev/dxg 2>/dev/null)"
}

up_to_date() { [ -s "$stamp" ] && [ "$(cat "$stamp")" = "$(new_stamp)" ]; }

take_lock() {
    [ -e "$stamp" ] || [ -z "$(ls -A "$venv" 2>/dev/null)" ] ||
        stop "$venv exists and was not made by this script: move it away," \
            "or choose another place with MMPSW_VENV=..."
    mkdir -p "$venv" ||
        stop "$venv can't be made: choose another place with MMPSW_VENV=..."
    # Commands inherit the lock. So a pip that has outlived a killed set-up
    # is waited for, instead of writing into the environment of the next one.
    exec 9>>"$stamp"
    flock -n 9 || {
        say "Another set-up of $venv is at work (or still stopping): waiting"
        flock 9
    }
}

# Really runs the interpreters: a name may be a shim that fails when called.
find_python() {
    local names=(python3 python3.12 python3.11 python3.10) version found=
    local ask='import sys; print("%d.%d" % sys.version_info[:2])'
    [ -z "${PYTHON:-}" ] || names=("$PYTHON")
    for base in "${names[@]}"; do
        version=$("$base" -c "$ask" 2>/dev/null) || continue
        if [[ $version == 3.1[012] ]]; then
            ! "$base" -c 'import ensurepip, venv' 2>/dev/null || return 0
            version="$version without the module venv"
        fi
        found="$found${found:+, }$base is $version"
    done
    stop "Python 3.10, 3.11 or 3.12 with its module venv (python3-venv on" \
        "Debian and Ubuntu) is needed; tried ${names[*]}" \
        "(${found:-none of them runs}). Install one, or name it with" \
        "PYTHON=..."
}

make_venv() {
    find "$venv/" -mindepth 1 -maxdepth 1 ! -path "$stamp" ! -path "$log" \
        -exec rm -rf {} + && "$base" -m venv "$venv"
}

# Compiles and links one small extension, as mmcv does.
need_compiler() {
    local include output
    include=$(py -c 'import sysconfig; print(sysconfig.get_path("include"))')
    output=$(printf '#include <Python.h>\n#include <optional>\nint x;\n' |
        ${CXX:-c++} -std=c++17 -shared -fPIC "-I$include" -x c++ - \
            -o "$venv/probe.so" 2>&1) ||
        stop "mmcv has to be compiled, and that fails: install g++" \
            "(build-essential on Debian and Ubuntu) and Python's headers" \
            "(python3-dev), or name another Python with PYTHON=...;" \
            "the compiler says: $(head -n 3 <<<"$output" | cut -c 1-200)"
}

# run TITLE COMMAND...: runs a command into the log, and shows that it lives.
run() {
    local title=$1 start=$SECONDS
    shift
    say "$title"
    "$@" </dev/null 2>&1 | tee -a "$log" | show_life ||
        failed "\"$title\" failed"
    say "    done in $((SECONDS - start)) s"
}

failed() {
    tail -n 30 "$log" | cut -c 1-300 >&2
    stop "$1: the end of its output is above, all of it is in $log. The next" \
        "set-up starts over; pip keeps its downloads."
}

# The time and the last line: on a line of the terminal, or once a minute.
show_life() {
    local start=$SECONDS told=$SECONDS new line=
    while read -r -t 1 new || (($? > 128)); do   # over 128: not yet a line
        line=${new:-$line}
        if [ -t 1 ]; then
            printf '\r\033[K    %s s  %s' $((SECONDS - start)) "${line:0:60}"
        elif ((SECONDS - told >= 60)); then
            told=$SECONDS
            printf '        %s s  %s\n' $((SECONDS - start)) "${line:0:60}"
        fi
    done
    [ ! -t 1 ] || printf '\r\033[K'
}

install_wheel() { pip install --force-reinstall --no-deps "$1"; }

find_wheel() {
    pip download --quiet --no-deps --only-binary "${mmcv%==*}" \
        --dest "$venv/wheels" "$mmcv" >>"$log" 2>&1 </dev/null
}

choose_operations() {
    local gpu cuda version=none
    read -r gpu cuda < <(py -c \
        'import torch; print(torch.cuda.is_available(), torch.version.cuda)')
    [ "$gpu" = True ] || [ "${FORCE_CUDA:-0}" = 1 ] || return 0
    ! find_nvcc >/dev/null || version=$("$(find_nvcc)" --version |
        sed -n 's/.*release \([0-9.]*\).*/\1/p')
    if [ "${version%%.*}" = "${cuda%%.*}" ]; then
        operations=cuda
    elif [ "${FORCE_CUDA:-0}" = 1 ]; then
        stop "FORCE_CUDA=1 needs an nvcc of CUDA $cuda, which torch was" \
            "built with; found: $version."
    else
        say "torch sees a GPU, but mmcv's operations (non-maximum" \
            "suppression, RoIAlign) are made for the CPU only, because" \
            "there is no nvcc of CUDA $cuda (found: $version). Detectors" \
            "need it to train on the GPU: install it and run this again, or" \
            "train with CUDA_VISIBLE_DEVICES=''."
    fi
}

# Runs a compiled operation: a wheel built for another torch fails here.
mmcv_works() {
    py - "${mmcv#*==}" "$operations" >>"$log" 2>&1 <<'END'
import sys
import mmcv, torch
from mmcv.ops import get_compiling_cuda_version, nms
assert mmcv.__version__ == sys.argv[1], mmcv.__version__
devices = ['cpu']
if sys.argv[2] == 'cuda':
    assert get_compiling_cuda_version() != 'not available'
    devices += ['cuda'] * torch.cuda.is_available()
boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 8.], [20., 0., 29., 9.]])
for device in devices:
    scores = torch.tensor([.9, .8, .7], device=device)
    assert nms(boxes.to(device), scores, .5)[1].tolist() == [0, 2], device
END
}

install_mmcv() {
    local wheel
    for wheel in "$venv/wheels"/$cached "$cache/$operations"/$cached; do
        [ -e "$wheel" ] || continue
        run "Installing $wheel" install_wheel "$wheel"
        ! mmcv_works || return 0
        say "    it does not work with this torch: trying the next way"
    done
    need_compiler
    build_mmcv
    mmcv_works || failed "mmcv was built, and using its operations failed"
}

build_mmcv() {
    local build jobs cores wheel
    # Compiling one file takes up to 1.5 GB.
    jobs=$(awk '/MemAvailable/ {print int($2 / 1.5e6)}' /proc/meminfo)
    ((jobs > 0)) || jobs=1
    cores=$(env -u OMP_NUM_THREADS nproc)   # nproc itself obeys it
    export MAX_JOBS=${MAX_JOBS:-$((jobs < cores ? jobs : cores))}
    build=$(mktemp -d "$venv/build.XXXXXX")
    run "Compiling $mmcv for the $operations, $MAX_JOBS files at once" \
        compile_mmcv "$build"
    wheel=$(echo "$build"/*mmcv-*.whl)
    run "Installing $wheel" install_wheel "$wheel"
    # Renamed, so that nobody finds half a wheel.
    mkdir -p "$cache/$operations" && cp "$wheel" "$cache/.$$" &&
        mv "$cache/.$$" "$cache/$operations/${wheel##*/}" ||
        say "    the wheel can't be kept in $cache for the next time"
    rm -rf "$build"
}

# Not from pip's cache: its mmcv may have been built for another torch. Nor is
# the lock handed on: what is left of a killed build does no harm.
compile_mmcv() {
    local build=$1
    # CFLAGS take the place of Python's own. -g0: a wheel of 2 MB, not 32.
    export CFLAGS="-O3 -DNDEBUG -g0 ${CFLAGS:-}" FORCE_CUDA=1
    # mmcv builds CUDA operations whenever torch sees a GPU.
    [ "$operations" = cuda ] || export FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=
    if precompile_header "$build"; then
        CFLAGS+=' -include mmpsw.h'
        export CPLUS_INCLUDE_PATH=$build
    fi
    export CXXFLAGS=$CFLAGS MMCV_WITH_OPS=1 TMPDIR=$build PATH=$venv/bin:$PATH
    pip wheel -v --no-cache-dir --no-binary "${mmcv%==*}" \
        --no-build-isolation --no-deps --wheel-dir "$build" "$mmcv" 9>&-
}

# Most of a file's time goes into torch's headers, so gcc compiles them once.
# The flags must be those of mmcv's files; the trial shows that it is used.
precompile_header() {
    local cxx="${CXX:-c++} $CFLAGS -fPIC -std=c++17" paths
    paths=$(py -c 'from torch.utils.cpp_extension import include_paths
print(*include_paths(), sep=":")')
    echo '#include <torch/types.h>' >"$1/mmpsw.h"
    ! ${CXX:-c++} --version | grep clang && CPLUS_INCLUDE_PATH=$paths \
        $cxx -x c++-header "$1/mmpsw.h" -o "$1/mmpsw.h.gch" &&
        $cxx -Winvalid-pch -Werror -include "$1/mmpsw.h" -x c++ \
            -c /dev/null -o "$1/trial.o"
}

# Python compiles the modules that are used; compiling all takes a minute.
install_pins() {
    pip install pip==26.0.1 && pip install --no-compile \
        --requirement "$pins" --requirement "$stack"
}

headless_opencv() {
    pip uninstall --yes opencv-python && pip install --no-deps \
        "opencv-python-headless==$(sed -n 's/^opencv-python==//p' "$stack")" &&
        py -c 'import cv2'
}

main() {
    mmcv=$(sed -n 's/^.*Built from source: //p' "$stack" 2>/dev/null) ||
        stop "MMPSW_STACK=$MMPSW_STACK is unknown: use openmmlab or onedl"
    case ${1:-} in
    '') ! up_to_date || return 0 ;;
    --check)
        up_to_date || stop "$venv is not up to date: run bash tools/setup.sh"
        say "$venv is up to date"
        return ;;
    *) stop "unknown option $1: see the top of tools/setup.sh" ;;
    esac
    trap 'stop "interrupted; the next set-up starts over"' HUP INT TERM
    take_lock
    ! up_to_date || return 0
    if [ "$(head -n 1 "$stamp")" = "$(new_stamp | head -n 1)" ]; then
        say "Bringing $venv up to date"
        : >"$stamp"
    else
        say "Setting up mmpsw: 3 minutes, and 3 to 10 more if mmcv has to be" \
            "compiled; 8 GB on the disk, with what pip keeps"
        : >"$stamp"
        find_python
        : >"$log"
        run "Making $venv on $base" make_venv
    fi

    # Where wheels of mmcv are kept. The file's name says the rest.
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/mmpsw/torch$(
        sed -n 's/^torch==//p' "$pins")
    cached=${mmcv//-/_}
    cached=${cached/==/-}-$(py -c \
        'import sys; print("cp%d%d" % sys.version_info[:2])')-*$(uname -m).whl
    # What could stop the set-up is looked at before torch is downloaded.
    mmcv_works || find_wheel || compgen -G "$cache/*/$cached" >/dev/null ||
        need_compiler

    run 'Installing the pinned requirements: 3 GB, 2 to 5 minutes' install_pins
    # On a machine without a desktop, OpenCV misses libGL and the like.
    py -c 'import cv2' >>"$log" 2>&1 ||
        run "Taking the OpenCV that needs no desktop" headless_opencv
    choose_operations
    mmcv_works || install_mmcv
    run "Installing mmpsw from $root" \
        pip install --no-deps --no-build-isolation --editable "$root"
    new_stamp >"$stamp"
    say "Ready after $SECONDS s: source $venv/bin/activate"
}

main "$@"
exit   # bash must not read on, should this file have changed meanwhile
