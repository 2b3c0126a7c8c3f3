-- A store of schema 2: see tests/support/old.rs. Never edited; a later schema gets a dump of its own beside it.
PRAGMA application_id = 1347253108;
PRAGMA user_version = 2;
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE blobs (
    digest       TEXT    PRIMARY KEY,
    blob_bytes   INTEGER NOT NULL,
    piece_bytes  INTEGER NOT NULL,
    fill         INTEGER NOT NULL,
    -- SHA-256 of each piece, 32 bytes each.
    piece_hashes BLOB    NOT NULL,
    used_ms      INTEGER NOT NULL
, verified_ms INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;
INSERT INTO "blobs" VALUES('sha256:2cd0956bf537e41a551bded22d28547f9527adf1c2f021d7afc585cb48cffe6b',700,4096,3523947654670874032,X'2CD0956BF537E41A551BDED22D28547F9527ADF1C2F021D7AFC585CB48CFFE6B',60000,60000);
INSERT INTO "blobs" VALUES('sha256:437aebf0434ece88cd4ce60a69c5781c1ab1a916056159ef883f6fae626d6a46',12188,4096,-2522831208956318997,X'DA3AFB8C9255FF1189D2CD18B95B4CA57496ED1A16B2B199148EEBB4835D151BFF8D8D1FC656EB8BE988DAD91C7BD4025284D18FCB4F86D859A2D5E27BB057F178BA30406B2D3C02E5297E342E5B8B590F7F589A394094DA9B62079F57067059',0,0);
CREATE TABLE manifests (
    digest     TEXT    PRIMARY KEY,
    media_type TEXT    NOT NULL,
    bytes      BLOB    NOT NULL,
    used_ms    INTEGER NOT NULL
) STRICT;
INSERT INTO "manifests" VALUES('sha256:bafebd36189ad3688b7b3915ea55d461e0bfcfbdde11e54b0a123999fb6be50f','application/vnd.oci.image.manifest.v1+json',X'7B22736368656D6156657273696F6E223A327D',120000);
CREATE TABLE partial_pieces (
    partial INTEGER NOT NULL REFERENCES partials (id) ON DELETE CASCADE,
    piece   INTEGER NOT NULL,
    hash    BLOB    NOT NULL,
    PRIMARY KEY (partial, piece)
) STRICT, WITHOUT ROWID;
INSERT INTO "partial_pieces" VALUES(3,0,X'685800CC0F8C9AE627BE259C1784D5E016092ADCBB16A988553BFB3EAF043723');
INSERT INTO "partial_pieces" VALUES(3,2,X'15E886FAE039A65D3A7033A5A19FFE76665D32B2EA25EADF17469E0E622063A3');
CREATE TABLE partial_tails (
    partial INTEGER NOT NULL REFERENCES partials (id) ON DELETE CASCADE,
    piece   INTEGER NOT NULL,
    bytes   INTEGER NOT NULL,
    hash    BLOB    NOT NULL,
    PRIMARY KEY (partial, piece)
) STRICT, WITHOUT ROWID;
INSERT INTO "partial_tails" VALUES(3,1,1000,X'3FE8E9B9FA2DFDC7A740CA9E1E9D54C15657E12ED9A7E6552341F3FED645CA9C');
CREATE TABLE partials (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    digest      TEXT    NOT NULL UNIQUE,
    blob_bytes  INTEGER NOT NULL,
    piece_bytes INTEGER NOT NULL,
    fill        INTEGER NOT NULL,
    used_ms     INTEGER NOT NULL
) STRICT;
INSERT INTO "partials" VALUES(3,'sha256:57aedbdc785c48de2a07fe3592644278f38d087f3d4e9030b28bf46be5a8c87b',16284,4096,8065731240241758636,120000);
CREATE TABLE rights (
    upstream   TEXT    NOT NULL,
    repository TEXT    NOT NULL,
    holder     BLOB    NOT NULL,
    proven_ms  INTEGER NOT NULL,
    PRIMARY KEY (upstream, repository, holder)
) STRICT, WITHOUT ROWID;
INSERT INTO "rights" VALUES('docker.io','library/alpine',X'',120000);
CREATE TABLE sources (
    digest     TEXT    NOT NULL,
    upstream   TEXT    NOT NULL,
    repository TEXT    NOT NULL,
    used_ms    INTEGER NOT NULL,
    PRIMARY KEY (digest, upstream, repository)
) STRICT, WITHOUT ROWID;
INSERT INTO "sources" VALUES('sha256:437aebf0434ece88cd4ce60a69c5781c1ab1a916056159ef883f6fae626d6a46','docker.io','library/alpine',120000);
INSERT INTO "sources" VALUES('sha256:bafebd36189ad3688b7b3915ea55d461e0bfcfbdde11e54b0a123999fb6be50f','docker.io','library/alpine',120000);
CREATE TABLE store (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    node_id BLOB    NOT NULL,
    age_ms  INTEGER NOT NULL,
    -- The wall clock when `age_ms` was written, in milliseconds since 1970: how long the process was down.
    wall_ms INTEGER NOT NULL
) STRICT;
INSERT INTO "store" VALUES(1,X'8357DC39635CA5462250128FAC3A04C3',120000,1800000120000);
CREATE TABLE tags (
    upstream   TEXT    NOT NULL,
    repository TEXT    NOT NULL,
    tag        TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    checked_ms INTEGER NOT NULL,
    used_ms    INTEGER NOT NULL,
    PRIMARY KEY (upstream, repository, tag)
) STRICT, WITHOUT ROWID;
INSERT INTO "tags" VALUES('docker.io','library/alpine','latest','sha256:bafebd36189ad3688b7b3915ea55d461e0bfcfbdde11e54b0a123999fb6be50f',120000,120000);
CREATE INDEX sources_by_repository ON sources (upstream, repository);
CREATE INDEX manifests_by_use ON manifests (used_ms);
CREATE INDEX tags_by_use ON tags (used_ms);
CREATE INDEX sources_by_use ON sources (used_ms);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('partials',3);
COMMIT;
