-- Times are the store's own age in milliseconds (see src/clock.rs), never dates.

CREATE TABLE store (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    node_id BLOB    NOT NULL,
    age_ms  INTEGER NOT NULL,
    -- The wall clock when `age_ms` was written, in milliseconds since 1970: how long the process was down.
    wall_ms INTEGER NOT NULL
) STRICT;

-- A blob whose bytes were proven and whose file was synced under its final name before its row was written.
CREATE TABLE blobs (
    digest       TEXT    PRIMARY KEY,
    blob_bytes   INTEGER NOT NULL,
    piece_bytes  INTEGER NOT NULL,
    fill         INTEGER NOT NULL,
    -- SHA-256 of each piece, 32 bytes each.
    piece_hashes BLOB    NOT NULL,
    used_ms      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Never reuses an id: a late batch of pieces must not land in the successor of a partial that was discarded.
CREATE TABLE partials (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    digest      TEXT    NOT NULL UNIQUE,
    blob_bytes  INTEGER NOT NULL,
    piece_bytes INTEGER NOT NULL,
    fill        INTEGER NOT NULL,
    used_ms     INTEGER NOT NULL
) STRICT;

-- A piece that was written, with the SHA-256 that it had. A hint: its bytes may not have reached the disk.
CREATE TABLE partial_pieces (
    partial INTEGER NOT NULL REFERENCES partials (id) ON DELETE CASCADE,
    piece   INTEGER NOT NULL,
    hash    BLOB    NOT NULL,
    PRIMARY KEY (partial, piece)
) STRICT, WITHOUT ROWID;

-- The first bytes of a piece that has not been written yet, with their SHA-256. A hint too.
CREATE TABLE partial_tails (
    partial INTEGER NOT NULL REFERENCES partials (id) ON DELETE CASCADE,
    piece   INTEGER NOT NULL,
    bytes   INTEGER NOT NULL,
    hash    BLOB    NOT NULL,
    PRIMARY KEY (partial, piece)
) STRICT, WITHOUT ROWID;

CREATE TABLE manifests (
    digest     TEXT    PRIMARY KEY,
    media_type TEXT    NOT NULL,
    bytes      BLOB    NOT NULL,
    used_ms    INTEGER NOT NULL
) STRICT;

CREATE TABLE tags (
    upstream   TEXT    NOT NULL,
    repository TEXT    NOT NULL,
    tag        TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    checked_ms INTEGER NOT NULL,
    used_ms    INTEGER NOT NULL,
    PRIMARY KEY (upstream, repository, tag)
) STRICT, WITHOUT ROWID;

-- The upstream itself answered for this blob or manifest under this repository.
CREATE TABLE sources (
    digest     TEXT    NOT NULL,
    upstream   TEXT    NOT NULL,
    repository TEXT    NOT NULL,
    used_ms    INTEGER NOT NULL,
    PRIMARY KEY (digest, upstream, repository)
) STRICT, WITHOUT ROWID;

-- The upstream itself served the holder from this repository. An empty holder is anybody; otherwise it is a node's id.
CREATE TABLE rights (
    upstream   TEXT    NOT NULL,
    repository TEXT    NOT NULL,
    holder     BLOB    NOT NULL,
    proven_ms  INTEGER NOT NULL,
    PRIMARY KEY (upstream, repository, holder)
) STRICT, WITHOUT ROWID;

CREATE INDEX sources_by_repository ON sources (upstream, repository);
CREATE INDEX manifests_by_use ON manifests (used_ms);
CREATE INDEX tags_by_use ON tags (used_ms);
CREATE INDEX sources_by_use ON sources (used_ms);
