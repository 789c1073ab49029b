# Sourced by run.sh and test.sh: `prepare EXTRAS` leaves in $python an interpreter that can import jaxllm.
#
# That is .venv's, made and filled when missing or when pyproject.toml has changed. JAXLLM_PYTHON=/path/to/python
# names another one that has the dependencies already (a GPU machine's, with its own JAX); nothing is installed then.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in python3 python3.12 python3.13 python3.14 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.12 or newer is needed, and python3 here is $(python3 --version 2>&1 || true): install it \
(for example 'pyenv install 3.12' or 'apt install python3.12-venv'), or name one with JAXLLM_PYTHON=/path/to/python"
}

# One line that changes on a terminal, a line per package elsewhere.
show_install() {
  local line
  while IFS= read -r line; do
    case $line in
      Collecting* | Building* | Installing*)
        if [[ -t 1 ]]; then printf '\r\033[K  %.70s' "$line"; else printf '  %.70s\n' "$line"; fi
        ;;
    esac
  done
  if [[ -t 1 ]]; then printf '\r\033[K'; fi
}

prepare() { # EXTRAS: such as "test,dev"; may be empty
  if [[ -n ${JAXLLM_PYTHON:-} ]]; then
    python=$JAXLLM_PYTHON
    export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
    return
  fi
  local found stamp log
  python=$root/.venv/bin/python
  # One that was begun where pip could not be had has a python and nothing else: making it again adds pip.
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    found=$(find_python)
    echo "Making .venv with $("$found" --version) ..."
    "$found" -m venv .venv || fail "$found cannot make a virtual environment: see above (Debian: apt install python3-venv)"
  fi
  stamp=.venv/.installed-${1:-base}
  if ! cmp -s pyproject.toml "$stamp"; then
    log=.venv/install.log
    echo "Installing jaxllm${1:+[$1]} into .venv; the first time takes some minutes ..."
    if ! "$python" -m pip install --disable-pip-version-check -e ".${1:+[$1]}" 2>&1 </dev/null | tee "$log" | show_install; then
      tail -n 15 "$log" >&2
      fail "the installation failed; the whole log is $log"
    fi
    cp pyproject.toml "$stamp"
  fi
}
