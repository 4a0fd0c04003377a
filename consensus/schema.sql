-- The replicated state. Every row is a function of the log; nothing local to a node is kept here.
-- Digests are packed (names.Digest.packed), ids are handed out in log order and so equal on every node, `changed` is
-- the log index of the last change a reader can see.

CREATE TABLE meta (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  schema_version INTEGER NOT NULL,
  cluster_id TEXT NOT NULL,
  applied INTEGER NOT NULL,
  log_time_ms INTEGER NOT NULL,
  catalog_changed INTEGER NOT NULL
) STRICT;

-- A repository arises at its first blob, mount or manifest, and stays. `tags_changed` covers the list of tag names.
CREATE TABLE repositories (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  tags_changed INTEGER NOT NULL
) STRICT;

CREATE TABLE stores (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE
) STRICT;

-- `parts` are the digests of a blob's parts (consensus.parts), empty where they are not known.
CREATE TABLE blobs (
  id INTEGER PRIMARY KEY,
  digest BLOB NOT NULL UNIQUE,
  size_bytes INTEGER NOT NULL,
  pushed_ms INTEGER NOT NULL, -- the log time at which it was first recorded
  parts BLOB NOT NULL
) STRICT;

CREATE TABLE holders (
  blob INTEGER NOT NULL,
  store INTEGER NOT NULL,
  PRIMARY KEY (blob, store)
) STRICT, WITHOUT ROWID;

CREATE TABLE links (
  repository INTEGER NOT NULL,
  blob INTEGER NOT NULL,
  changed INTEGER NOT NULL,
  PRIMARY KEY (repository, blob)
) STRICT, WITHOUT ROWID;

CREATE INDEX links_by_blob ON links (blob);

-- The bytes of manifests, once for all repositories; gone with the last manifest that has them.
CREATE TABLE contents (
  id INTEGER PRIMARY KEY,
  digest BLOB NOT NULL UNIQUE,
  size_bytes INTEGER NOT NULL,
  bytes BLOB NOT NULL
) STRICT;

-- The key begins with the content, so that its prefix says whether any repository still has it.
CREATE TABLE manifests (
  content INTEGER NOT NULL,
  repository INTEGER NOT NULL,
  media_type TEXT NOT NULL,
  subject BLOB,
  changed INTEGER NOT NULL,
  PRIMARY KEY (content, repository)
) STRICT, WITHOUT ROWID;

-- Which blobs a manifest names; the key answers whether a blob is in use, the index what goes with a manifest.
CREATE TABLE manifest_blobs (
  repository INTEGER NOT NULL,
  blob INTEGER NOT NULL,
  content INTEGER NOT NULL,
  PRIMARY KEY (repository, blob, content)
) STRICT, WITHOUT ROWID;

CREATE INDEX manifest_blobs_by_content ON manifest_blobs (content, repository);

-- An index's children by digest: they may be deleted, or absent from the start in a sparse index.
CREATE TABLE manifest_children (
  content INTEGER NOT NULL,
  repository INTEGER NOT NULL,
  child BLOB NOT NULL,
  PRIMARY KEY (content, repository, child)
) STRICT, WITHOUT ROWID;

CREATE TABLE tags (
  repository INTEGER NOT NULL,
  name TEXT NOT NULL,
  content INTEGER NOT NULL,
  changed INTEGER NOT NULL,
  PRIMARY KEY (repository, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX tags_by_content ON tags (repository, content);

-- `annotations` is a msgpack array of [key, value].
CREATE TABLE referrers (
  repository INTEGER NOT NULL,
  subject BLOB NOT NULL,
  digest BLOB NOT NULL,
  content INTEGER NOT NULL,
  artifact_type TEXT,
  annotations BLOB NOT NULL,
  PRIMARY KEY (repository, subject, digest)
) STRICT, WITHOUT ROWID;

CREATE INDEX referrers_by_type ON referrers (repository, subject, artifact_type);

-- The change index of a subject's list of referrers; it outlives the list.
CREATE TABLE subjects (
  repository INTEGER NOT NULL,
  digest BLOB NOT NULL,
  changed INTEGER NOT NULL,
  PRIMARY KEY (repository, digest)
) STRICT, WITHOUT ROWID;

-- Parts of manifests too large for one command; `entry` is the log index that brought the part.
CREATE TABLE staged (
  entry INTEGER PRIMARY KEY,
  repository TEXT NOT NULL,
  digest BLOB NOT NULL,
  part INTEGER NOT NULL,
  parts INTEGER NOT NULL,
  time_ms INTEGER NOT NULL,
  content BLOB NOT NULL,
  UNIQUE (repository, digest, part)
) STRICT;

CREATE TABLE proposers (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  acknowledged INTEGER NOT NULL,
  used_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE outcomes (
  proposer INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  outcome BLOB NOT NULL,
  PRIMARY KEY (proposer, sequence)
) STRICT, WITHOUT ROWID;
