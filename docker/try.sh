#!/bin/sh
# Builds docker/Dockerfile.cpu and tries it on a machine without Docker and without an image registry.
#
#     sudo apt-get install buildah debootstrap
#     sudo docker/try.sh [OPTION of buildah build ...]
#
# Debootstrap makes the base image that the Dockerfile names, buildah builds the Dockerfile on it, by chroot,
# and runs the image as an engine would: its entry point with the demo, then its health check, as its user.
# Nothing is left at the end. A machine that reaches packages in its own way says so in options, such as
#     --volume "$PWD/pip.conf:/etc/pip.conf:ro" --build-arg PIP_EXTRA_INDEX_URL=
# Needs root; allow 20 GB where $TMPDIR is.
set -eu
cd "$(dirname "$0")/.."
for program in buildah debootstrap; do
  command -v "$program" > /dev/null || { echo "try.sh: apt-get install $program" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "try.sh: needs root, for chroot: sudo docker/try.sh" >&2; exit 1; }

file=docker/Dockerfile.cpu
base=$(sed -n 's/^FROM \(debian:[^ ]*\).*/\1/p' "$file" | sort -u) # debian:CODENAME-DATE-slim
codename=$(expr "$base" : 'debian:\([a-z]*\)-[0-9]*-slim$') ||
  { echo "try.sh: $file: every FROM must be one and the same debian:CODENAME-DATE-slim" >&2; exit 1; }
folder=$(mktemp -d)
export BUILDAH_ISOLATION=chroot
buildah() { command buildah --root "$folder/images" --runroot "$folder/state" "$@"; }
trap 'buildah rm --all > /dev/null || true; rm -rf --one-file-system "$folder"' EXIT
trap 'exit 1' HUP INT TERM

debootstrap --variant=minbase "$codename" "$folder/debian" > "$folder/log" ||
  { cat "$folder/log" >&2; exit 1; }
empty=$(buildah from scratch)
buildah add -q "$empty" "$folder/debian" / > /dev/null
buildah commit -q "$empty" "docker.io/library/$base" > /dev/null
rm -rf "$folder/debian"

# Of the two formats only Docker's keeps a health check.
buildah build --format docker --pull-never "$@" -f "$file" -t try .
image=$(buildah from try)
inspect() { buildah inspect --format "{{range .Docker.Config.$1}}{{.}} {{end}}" "$image"; }
user=$(buildah inspect --format '{{.Docker.Config.User}}' "$image")
[ -n "$user" ] && [ "$user" != root ] ||
  { echo "try.sh: the image would run as root: name a USER in $file" >&2; exit 1; }
entry=$(inspect Entrypoint)
health=$(inspect Healthcheck.Test)
# shellcheck disable=SC2086 # words, by design
buildah run "$image" -- $entry run --config configs/demo.yaml
# shellcheck disable=SC2086
buildah run "$image" -- ${health#CMD }
echo "try.sh: $base, built, the demo run and the health check passed as user $user"
