#!/usr/bin/env bash
# Everything that Terra needs, on Debian 12/13 or Ubuntu 24.04: system packages, .venv, jemalloc, and the package itself
# installed into .venv. Each part has a stamp: the second run does nothing and needs no network.
#
#   scripts/setup.sh [deps]     with `deps`, all but the package itself
#
# JEMALLOC_TARBALL=file   build jemalloc from this tarball instead of the distribution's source package
# TERRA_PYTHON=python3    the interpreter for .venv (CPython >= 3.11)
# TERRA_TORCH_PIP_ARGS    extra pip arguments when torch, which only the tests use, is installed
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

# package:how to see that it is there
SYSTEM=(
    build-essential:/usr/bin/g++
    pkg-config:/usr/bin/pkg-config
    dpkg-dev:/usr/bin/dpkg-source
    libhwloc-dev:/usr/include/hwloc.h
    libcriterion-dev:/usr/include/criterion/criterion.h
    libsleef-dev:sleef.h
    spin:/usr/bin/spin
    ca-certificates:/etc/ssl/certs/ca-certificates.crt
    bzip2:/bin/bzip2
    make:/usr/bin/make
)

# A Python with headers and a working venv module: the one named, any python3 >= 3.11 on the path, else Debian's.
python_is_usable() {
    "$1" - >/dev/null 2>&1 <<'PY'
import ensurepip, os, sys, sysconfig, venv
assert sys.version_info >= (3, 11) and sys.implementation.name == "cpython"
assert not sysconfig.get_config_var("Py_GIL_DISABLED")
assert os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h"))
PY
}

find_python() {
    local candidate
    for candidate in ${TERRA_PYTHON:-python3 /usr/bin/python3 python3.13 python3.12 python3.11}; do
        if python_is_usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

missing_packages() {
    local entry path
    for entry in "${SYSTEM[@]}"; do
        path="${entry#*:}"
        case "$path" in
            /*) [ -e "$path" ] || echo "${entry%%:*}" ;;
            *) [ -e "/usr/include/$path" ] || compgen -G "/usr/include/*/$path" >/dev/null || echo "${entry%%:*}" ;;
        esac
    done
    if ! find_python >/dev/null; then
        printf '%s\n' python3-dev python3-venv
    fi
}

install_system() {
    local packages
    mapfile -t packages < <(missing_packages)
    command -v apt-get >/dev/null || die "no apt-get here; please install: ${packages[*]}"
    as_root apt-get -q update
    as_root apt-get -q install -y --no-install-recommends "${packages[@]}"
}

make_venv() {
    local python
    python="$(find_python)" || die "no CPython >= 3.11 with headers and venv; name one with TERRA_PYTHON="
    [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
    "$VENV/bin/python" -m pip install --disable-pip-version-check -r scripts/requirements-build.txt
}

install_test_tools() {
    # shellcheck disable=SC2086
    "$VENV/bin/python" -m pip install --disable-pip-version-check ${TERRA_TORCH_PIP_ARGS:-} \
        -r scripts/requirements-test.txt
}

[ -z "$(missing_packages)" ] || step apt "system packages ($(missing_packages | tr '\n' ' ' | cut -c1-36)…)" install_system

stamp="$STAMPS/venv-$(digest scripts/requirements-build.txt)"
if [ ! -e "$stamp" ] || [ ! -x "$VENV/bin/python" ]; then
    step venv "python environment: .venv" make_venv
    touch "$stamp"
fi

stamp="$STAMPS/jemalloc-$(digest scripts/build-jemalloc.sh)"
if [ ! -e "$stamp" ]; then
    step jemalloc "jemalloc, from its source package" scripts/build-jemalloc.sh "$ROOT/build/deps/jemalloc"
    touch "$stamp"
fi

if [ "${1:-}" = test ]; then
    stamp="$STAMPS/test-$(digest scripts/requirements-test.txt)"
    if [ ! -e "$stamp" ]; then
        step torch "test tools (torch, pytest, …)" install_test_tools
        touch "$stamp"
    fi
fi

[ "${1:-}" = deps ] || scripts/build.sh
