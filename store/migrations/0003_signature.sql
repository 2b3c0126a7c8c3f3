-- The authority's Ed25519 signature over the list of piece hashes, 64 bytes; none where it has not been signed yet.
ALTER TABLE blobs ADD COLUMN signature BLOB;
