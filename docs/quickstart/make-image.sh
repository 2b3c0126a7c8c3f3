#!/bin/sh
# Writes a small OCI image, tag v1, as a layout in the folder named: one layer of 8 MB that holds nothing of use.
set -eu
layout=${1:?usage: make-image.sh FOLDER}
blobs=$layout/blobs/sha256
mkdir -p "$blobs"

# Moves a file to where its digest says, and prints the digest.
add() {
    digest=$(sha256sum "$1" | cut -d ' ' -f 1)
    mv "$1" "$blobs/$digest"
    echo "$digest"
}
size() { stat -c %s "$blobs/$1"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
head -c 8000000 /dev/urandom > "$work/root/payload"
tar -C "$work/root" -cf "$work/layer" payload
layer=$(add "$work/layer")
printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$layer" > "$work/config"
config=$(add "$work/config")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%s","size":%s}]}' \
    "$config" "$(size "$config")" "$layer" "$(size "$layer")" > "$work/manifest"
manifest=$(add "$work/manifest")
printf '{"imageLayoutVersion":"1.0.0"}' > "$layout/oci-layout"
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"org.opencontainers.image.ref.name":"v1"}}]}' \
    "$manifest" "$(size "$manifest")" > "$layout/index.json"
