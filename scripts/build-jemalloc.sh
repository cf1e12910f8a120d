#!/usr/bin/env bash
# build-jemalloc.sh DIR: builds jemalloc 5.3 as a static library for linking into a Python module, into DIR.
#
# The packaged library can't be loaded by dlopen ("cannot allocate memory in static TLS block"), hence our own build:
# no initial-exec TLS, prefixed names, hidden visibility. The source is the distribution's source package, fetched with
# a private sources list, lists folder and cache, so that the user's apt is left as it is; or JEMALLOC_TARBALL.
set -euo pipefail

prefix="$1"
work="$prefix.work"
rm -rf "$work"
mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial" "$work/src"

# The user's own mirrors for this release, as deb-src: one stanza each.
write_sources() {
    local codename keyring='' uri component candidate
    codename="$(. /etc/os-release && echo "${VERSION_CODENAME:-}")"
    for candidate in /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/ubuntu-archive-keyring.gpg; do
        if [ -e "$candidate" ] && [[ "$candidate" == *"$(. /etc/os-release && echo "$ID")"* ]]; then
            keyring="$candidate"
        fi
    done
    apt-get indextargets --format '$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)' 'Created-By: Packages' | sort -u |
        while IFS='|' read -r origin uri release component; do
            case "$origin" in Debian | Ubuntu | '' | '$(ORIGIN)') ;; *) continue ;; esac
            case "$component" in main | universe) ;; *) continue ;; esac
            [ "$release" = "$codename" ] || continue
            printf 'Types: deb-src\nURIs: %s\nSuites: %s\nComponents: %s\n' "$uri" "$release" "$component"
            [ -z "$keyring" ] || printf 'Signed-By: %s\n' "$keyring"
            echo
        done
}

fetch_source() {
    write_sources >"$work/apt/terra.sources"
    [ -s "$work/apt/terra.sources" ] || {
        echo "no Debian or Ubuntu mirror configured here; name a tarball with JEMALLOC_TARBALL=" >&2
        exit 1
    }
    local apt=(
        -o "Dir::Etc::sourcelist=$work/apt/terra.sources" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache" -o Acquire::Languages=none
    )
    apt-get -q "${apt[@]}" update
    # Only the original tarball is needed, neither the description nor the distribution's patches: some mirrors lack the
    # former. What arrived is checked against the signed index.
    (cd "$work/src" && apt-get -q "${apt[@]}" source --download-only --only-source jemalloc) || true
    tarball="$(find "$work/src" -maxdepth 1 -name 'jemalloc_*.orig.tar.*' ! -name '*.asc' | head -n 1)"
    [ -n "$tarball" ] || {
        echo "the mirror has no source of jemalloc; name a tarball with JEMALLOC_TARBALL=" >&2
        exit 1
    }
    apt-cache "${apt[@]}" showsrc --only-source jemalloc |
        awk -v name="$(basename "$tarball")" '$3 == name && length($1) == 64 { print $1; exit }' >"$work/sha256"
    echo "$(cat "$work/sha256")  $tarball" | sha256sum --check -
}

tarball="${JEMALLOC_TARBALL:-}"
[ -n "$tarball" ] || fetch_source
tar -xf "$tarball" -C "$work/src"
cd "$work"/src/jemalloc*/
[ -x configure ] || ./autogen.sh
# Never return memory to the system (measured: ResNet-50's step 157 ms so, 212 ms with glibc's defaults, 320 ms with a
# mapping per buffer); the extent hooks of arena.c see to placement and huge pages. `tr_je_` makes the environment
# variable TR_JE_MALLOC_CONF, so a MALLOC_CONF meant for another jemalloc in the process has no effect.
./configure --prefix="$prefix" --with-jemalloc-prefix=tr_je_ --with-private-namespace=tr_je_private_ \
    --disable-initial-exec-tls --disable-cxx --disable-shared --enable-static --disable-doc --disable-prof \
    --with-malloc-conf=narenas:1,tcache:false,dirty_decay_ms:-1,muzzy_decay_ms:-1 \
    EXTRA_CFLAGS='-fvisibility=hidden -fPIC'
make -j"$(nproc)" build_lib_static
mkdir -p "$prefix/lib" "$prefix/include"
cp lib/libjemalloc_pic.a "$prefix/lib/libtr_jemalloc.a"
cp -r include/jemalloc "$prefix/include/"
cat VERSION >"$prefix/VERSION" 2>/dev/null || true
rm -rf "$work"
