#!/usr/bin/env bash
# Installs what the tests need from Debian, and nothing where all of it is there: a compiler and the libraries that FFCV
# is built against, Slurm, Fashion-MNIST, and a browser for the reports.
set -euo pipefail

wanted=(g++ pkg-config libopencv-dev libturbojpeg0-dev slurm-wlm munge dataset-fashion-mnist chromium)

# Debian keeps its Python's header files in a package of their own; other builds of Python have them.
read -r version headers < <("${PYTHON:-python3}" -c \
    'import sys, sysconfig; print("%d.%d" % sys.version_info[:2], sysconfig.get_path("include"))')
[ -e "$headers/Python.h" ] || wanted+=("libpython$version-dev")

if ! command -v dpkg-query >/dev/null; then
    echo "make test: this is no Debian; install by hand what these packages hold, then run pytest: ${wanted[*]}" >&2
    exit 1
fi

missing=()
for package in "${wanted[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null || ! { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
        echo "make test: missing, and root is needed to install them: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
if ! command -v apt-get >/dev/null; then
    echo "make test: missing, and there is no apt-get to install them: ${missing[*]}" >&2
    exit 1
fi

echo "installing from Debian: ${missing[*]}"
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for step in "update" "install -y --no-install-recommends ${missing[*]}"; do
    # shellcheck disable=SC2086  # the words of a step are separate arguments
    "${apt[@]}" $step </dev/null >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
done
