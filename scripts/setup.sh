#!/usr/bin/env bash
# Builds the environment for the demo, the checks and the tests: .venv in the checkout, with Airflow, Spark,
# TensorFlow and a Horovod built against it. Made for Linux; a second run takes a second.
#
#     scripts/setup.sh                  # or: make setup
#     scripts/setup.sh --with torch     # or: make setup WITH=torch
#     scripts/setup.sh --for check      # what `make check` does first
#
# --for check installs as much as `make check` needs: no Spark, TensorFlow, Horovod, Java or compiler, and so a minute
# at most. Without it the rest is added to the same environment.
#
# --for peers installs what the benchmarks compare with, and nothing else: bench/environment.py says so, with a VENV
# for it.
#
# --with torch adds PyTorch and builds Horovod for it too. On x86-64, PyPI's torch wheel brings several GB of
# CUDA libraries; where PyTorch's own index can be reached, UV_TORCH_BACKEND=cpu chooses the small CPU wheel.
#
# Environment variables:
#     PYTHON   the interpreter to build on, 3.10 to 3.13; python3.11 where there is one
#     VENV     the environment's folder; .venv
#     WITH     torch, or empty; like --with
#     PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_CERT, pip.conf, UV_*: where packages come from, as for pip and uv
#     AIRFLOW_HYDROGEN_CACHE   where Horovod's wheels are kept; ~/.cache/airflow-hydrogen
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
WITH=${WITH:-}
SUPPORTED='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
TORCH='torch>=2.5,<2.14'  # torch 2.15's headers need C++20, which Horovod is not built with

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

PURPOSE=all
while (($#)); do
    case $1 in
        --for) PURPOSE=${2:-}; shift 2 || fail "--for needs a purpose: check, peers" ;;
        --with) WITH=${2:-}; shift 2 || fail "--with needs a name: torch" ;;
        *) fail "unknown argument $1; see the head of scripts/setup.sh" ;;
    esac
done
[[ $PURPOSE == all || $PURPOSE == check || $PURPOSE == peers ]] \
    || fail "--for $PURPOSE is unknown; there are: check, peers"
[[ -z $WITH || $WITH == torch ]] || fail "--with $WITH is unknown; there is: torch"

# --- What the system has to have -------------------------------------------------------------------------

# Installs Debian packages, or says in one line what somebody else has to install.
need() {
    local why=$1; shift
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        fail "$why: install it first (on Debian and Ubuntu: apt-get install $*)"
    fi
    say "$why: installing $*"
    if [[ -z ${APT_UPDATED:-} ]]; then
        apt-get update -qq
        APT_UPDATED=1
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

supported() { command -v "$1" >/dev/null && "$1" -c "$SUPPORTED" >/dev/null 2>&1; }

find_python() {
    local name
    # An environment that is there keeps its Python.
    for name in "$VENV/bin/python" python3.11 python3.12 python3.13 python3.10 python3; do
        if supported "$name"; then echo "$name"; return; fi
    done
    return 1
}

java_version() {
    local java=java
    [[ -z ${JAVA_HOME:-} ]] || java=$JAVA_HOME/bin/java
    # The first number of: openjdk version "17.0.15" 2025-04-15
    { "$java" -version 2>&1 || true; } | sed -nE 's/.* version "([0-9]+).*/\1/p'
}

check_system() {
    local version jdk=openjdk-17-jdk-headless
    version=$(java_version)
    if ((${version:-0} < 17)); then
        [[ -z ${JAVA_HOME:-} ]] || fail "JAVA_HOME=$JAVA_HOME has no Java 17 or later, which Spark needs"
        if command -v apt-cache >/dev/null && [[ $(id -u) == 0 ]]; then
            apt-get update -qq && APT_UPDATED=1
            apt-cache show "$jdk" >/dev/null 2>&1 || jdk=openjdk-21-jdk-headless
        fi
        need "Spark needs Java 17 or later, found ${version:-none}" "$jdk"
        version=$(java_version)
        ((${version:-0} >= 17)) || fail "java is still older than 17: put a newer one first on the PATH"
    fi
    local tool missing=()
    for tool in g++ make patch; do command -v $tool >/dev/null || missing+=("$tool"); done
    ((${#missing[@]} == 0)) || need "Horovod's build needs ${missing[*]}" "${missing[@]}"
    if [[ $WITH == torch ]] && ! "$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'; then
        need "Horovod for PyTorch needs Python's headers" "python$PYTHON_VERSION-dev"
    fi
    # What tests alone need is not asked of those who cannot install it. Tests of several hosts are skipped where
    # there is no ip; those with connectors and database servers fail, and say what is missing.
    [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || return 0
    command -v ip >/dev/null || need "the tests of several hosts need ip" iproute2
    command -v mvn >/dev/null || need "the tests of connectors need Maven" maven
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null \
        || need "the tests of databases need PostgreSQL" postgresql
    command -v mariadbd >/dev/null || need "the tests of databases need MariaDB" mariadb-server-core mariadb-client-core
}

# --- uv, with pip's settings -----------------------------------------------------------------------------

# Prints an option of pip's: from the environment, or else from pip's configuration files.
pip_option() {
    local name=PIP_${1^^} section value
    name=${name//-/_}
    value=${!name:-}
    for section in install global; do
        # `pip config get` misses what stands in PIP_CONFIG_FILE.
        [[ -n $value ]] || value=$("${PIP[@]}" config list 2>/dev/null | sed -n "s/^$section\.$1='\(.*\)'\$/\1/p")
    done
    echo "$value" | sed -e 's/\\n/ /g' -e 's/^ *//'
}

# Sets a variable of uv's from an option of pip's, unless it is set.
adopt() {
    local value
    [[ -z ${!1:-} ]] || return 0
    value=$(pip_option "$2")
    [[ -z $value ]] || export "$1=$value"
}

find_uv() {
    if command -v uv >/dev/null; then
        UV=uv
    else
        if [[ ! -x .uv/bin/uv ]]; then
            "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null \
                || need "$PYTHON has no venv" "python$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
            rm -rf .uv
            "$PYTHON" -m venv .uv
            .uv/bin/python -m pip install --quiet --disable-pip-version-check uv
        fi
        UV=.uv/bin/uv
    fi
    # uv does not read pip's settings.
    PIP=("$PYTHON" -m pip)
    [[ ! -x .uv/bin/pip ]] || PIP=(.uv/bin/python -m pip)
    [[ -n ${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-} ]] || adopt UV_DEFAULT_INDEX index-url
    [[ -n ${UV_INDEX:-} ]] || adopt UV_EXTRA_INDEX_URL extra-index-url
    adopt UV_INSECURE_HOST trusted-host
    adopt SSL_CERT_FILE cert
    # And pip, which fetches Horovod's source, does not read uv's.
    [[ -z ${UV_DEFAULT_INDEX:-} ]] || export PIP_INDEX_URL=${PIP_INDEX_URL:-$UV_DEFAULT_INDEX}
    export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180}  # TensorFlow's wheel is large
}

# --- The environment -------------------------------------------------------------------------------------

if [[ -n ${PYTHON:-} ]]; then
    supported "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.10, 3.11, 3.12 or 3.13"
else
    PYTHON=$(find_python) || {
        need "no Python 3.10 to 3.13" python3 python3-venv
        PYTHON=$(find_python) || fail "python3 is not a Python 3.10 to 3.13: name one with PYTHON="
    }
fi
PYTHON_VERSION=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# What the environment is made from; the folder counts because it stands in the environment's scripts.
key_of() { { cat "$@"; echo "$PYTHON_VERSION $PWD"; } | sha256sum | cut -c1-64; }
inputs=(requirements/{check.in,dev.txt} pyproject.toml scripts/setup.sh)
check_key=$(key_of "${inputs[@]}") check_stamp=$VENV/.check-stamp
all_key=$(key_of "${inputs[@]}" airflow_hydrogen/horovod_build/*.{py,patch})$WITH all_stamp=$VENV/.setup-stamp
peers_key=$(key_of requirements/peers.txt scripts/setup.sh) peers_stamp=$VENV/.peers-stamp
case $PURPOSE in
    check) key=$check_key stamp=$check_stamp ;;
    peers) key=$peers_key stamp=$peers_stamp ;;
    *) key=$all_key stamp=$all_stamp ;;
esac
if [[ -f $stamp && $(<"$stamp") == "$key" && -x $VENV/bin/python ]]; then
    say "$VENV is up to date"
    exit 0
fi

[[ $PURPOSE != all ]] || check_system
find_uv
if [[ $("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) != "$PYTHON_VERSION" ]]; then
    say "making $VENV with Python $PYTHON_VERSION"
    rm -rf "$VENV"
    "$UV" venv --quiet --no-project --python "$("$PYTHON" -c 'import sys; print(sys.executable)')" "$VENV"
fi
rm -f "$check_stamp" "$all_stamp" "$peers_stamp"
install=("$UV" pip install --quiet --python "$VENV/bin/python")
if [[ $PURPOSE == peers ]]; then
    say "installing requirements/peers.txt"
    "${install[@]}" -r requirements/peers.txt
    echo "$peers_key" >"$peers_stamp"
    say "$VENV is ready"
    exit 0
fi
if [[ $PURPOSE == check ]]; then
    say "installing requirements/check.in in the versions of requirements/dev.txt"
    "${install[@]}" -r requirements/check.in -c requirements/dev.txt
else
    say "installing requirements/dev.txt"
    "${install[@]}" -r requirements/dev.txt
    if [[ $WITH == torch ]]; then
        "${install[@]}" -c requirements/dev.txt "$TORCH" cffi
    fi
fi
"${install[@]}" --no-deps --no-build-isolation -e .
echo "$check_key" >"$check_stamp"
if [[ $PURPOSE == all ]]; then
    "$VENV/bin/python" -m airflow_hydrogen.horovod_build
    echo "$all_key" >"$all_stamp"
fi
say "$VENV is ready"
