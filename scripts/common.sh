# Sourced by the other scripts: paths, quiet steps with logs, sudo where it is needed.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
LOGS="$ROOT/build/logs"
STAMPS="$ROOT/build/stamps"
export DEBIAN_FRONTEND=noninteractive
mkdir -p "$LOGS" "$STAMPS"

die() {
    echo "terra: $*" >&2
    exit 1
}

# as_root COMMAND...: directly as root, else through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo --preserve-env=DEBIAN_FRONTEND "$@"
    else
        die "this needs root or sudo: $*"
    fi
}

# step NAME TEXT COMMAND...: one line on the terminal, everything else in build/logs/NAME.log; its tail on failure.
step() {
    local name="$1" text="$2" log="$LOGS/$1.log" start=$SECONDS
    shift 2
    printf '  %-58s ' "$text"
    if "$@" >"$log" 2>&1 </dev/null; then
        printf 'ok  %3d s\n' $((SECONDS - start))
    else
        printf 'FAILED\n'
        echo "--- the last lines of $log:"
        tail -n 40 "$log"
        return 1
    fi
}

# digest FILE...: one hash over the contents, for stamps.
digest() {
    cat "$@" | sha256sum | cut -c1-16
}

jobs_count() {
    nproc
}
