-- When the blob's bytes were last found to be good: the scrub begins with those for which that is longest ago.
ALTER TABLE blobs ADD COLUMN verified_ms INTEGER NOT NULL DEFAULT 0;
