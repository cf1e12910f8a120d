#!/usr/bin/env bash
# Builds the package and installs it into .venv, as a user's `pip install .` does, but incrementally (build/wheel is
# kept) and only when a source has changed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

stamp="$STAMPS/install"
newer() {
    [ ! -e "$stamp" ] || [ -n "$(find CMakeLists.txt pyproject.toml cmake include src build/deps -newer "$stamp" \
        -not -name '*.pyc' -not -name __pycache__ -print -quit)" ]
}

install_package() {
    "$VENV/bin/python" -m pip install --disable-pip-version-check --no-build-isolation --no-deps --no-index -v .
}

if newer; then
    touch "$stamp.next"
    step install "terra, into .venv" env PATH="$VENV/bin:$PATH" bash -c "$(declare -f install_package); VENV='$VENV' install_package"
    mv "$stamp.next" "$stamp"
fi
