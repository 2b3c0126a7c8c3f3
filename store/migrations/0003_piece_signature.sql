-- The authority's signature over the blob's piece hashes, 64 bytes; NULL: not known. A mirror makes its own when it is asked.
ALTER TABLE blobs ADD COLUMN piece_signature BLOB;
