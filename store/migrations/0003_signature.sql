-- The authority's Ed25519 signature over the list of piece hashes, 64 bytes; none where nobody has signed it yet.
ALTER TABLE blobs ADD COLUMN signature BLOB;
