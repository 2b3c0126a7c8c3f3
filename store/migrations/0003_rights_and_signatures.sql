-- The authority's Ed25519 signature over the list of piece hashes, 64 bytes; none where it has not been signed yet.
ALTER TABLE blobs ADD COLUMN signature BLOB;

-- Rights are kept by node and credential. An empty holder is the public, and then the credential is empty too; otherwise the
-- holder is a node's id, and the credential is a keyed hash of what the node showed, `site` for the site's own, `nothing`
-- where it showed none, or empty where an earlier version did not say which it was.
ALTER TABLE rights RENAME TO rights_by_node;
CREATE TABLE rights (
    upstream   TEXT    NOT NULL,
    repository TEXT    NOT NULL,
    holder     BLOB    NOT NULL,
    credential BLOB    NOT NULL,
    proven_ms  INTEGER NOT NULL,
    PRIMARY KEY (upstream, repository, holder, credential)
) STRICT, WITHOUT ROWID;
INSERT INTO rights SELECT upstream, repository, holder, x'', proven_ms FROM rights_by_node;
DROP TABLE rights_by_node;

-- The upstream itself refused the node's credential, in some repository: it is no new one, and what it has is in rights alone.
CREATE TABLE refusals (
    upstream   TEXT    NOT NULL,
    holder     BLOB    NOT NULL,
    credential BLOB    NOT NULL,
    refused_ms INTEGER NOT NULL,
    PRIMARY KEY (upstream, holder, credential)
) STRICT, WITHOUT ROWID;

CREATE INDEX rights_by_age ON rights (proven_ms);
CREATE INDEX rights_by_credential ON rights (holder, credential);
CREATE INDEX refusals_by_age ON refusals (refused_ms);

-- What credentials are hashed with, so that a password cannot be guessed from a row alone, nor rows of two stores be compared.
CREATE TABLE credential_key (
    id  INTEGER PRIMARY KEY CHECK (id = 1),
    key BLOB    NOT NULL
) STRICT;
INSERT INTO credential_key VALUES (1, randomblob(32));

-- Earlier versions wrote down that an upstream has a blob before its bytes had shown it. What is true of it is found out again.
DELETE FROM sources WHERE digest NOT IN (SELECT digest FROM manifests);
