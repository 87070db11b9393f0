# Sourced by the GPU scripts. Nothing is built: the Python files are staged as a package of their own, with the native CPU
# kernel of $python where it has one; CUDA does not need it. Reads PYTHON and SITE; sets root, python and PYTHONPATH.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
cp -r "$root/fastrl" "$stage/fastrl"
cp -r "$root/kernels" "$stage/fastrl/kernels"
if native=$("$python" -P -c 'import fastrl._native as n; print(n.__file__)' 2>/dev/null); then cp "$native" "$stage/fastrl/"; fi
export PYTHONPATH="$stage${SITE:+:$SITE}" PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
