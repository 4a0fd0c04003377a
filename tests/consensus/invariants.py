"""What must hold of the state at any index, read from the rows alone: nothing here knows how apply works.

Each query selects what contradicts a rule, so that an empty answer is a proof and a row is a counterexample.
"""

import hashlib
import sqlite3

from consensus.codec import decode_outcome
from consensus.names import Digest

_CONTRADICTIONS = {
    "a named blob is linked to the repository": """
        SELECT * FROM manifest_blobs n LEFT JOIN links l ON l.repository = n.repository AND l.blob = n.blob
        WHERE l.blob IS NULL""",
    "a linked blob is known and has a holder": """
        SELECT * FROM links l LEFT JOIN blobs b ON b.id = l.blob LEFT JOIN holders h ON h.blob = l.blob
        WHERE b.id IS NULL OR h.store IS NULL""",
    "a holder is a known store": "SELECT * FROM holders WHERE store NOT IN (SELECT id FROM stores)",
    "a link is of a known repository": "SELECT * FROM links WHERE repository NOT IN (SELECT id FROM repositories)",
    "a manifest has bytes and a repository": """
        SELECT * FROM manifests m LEFT JOIN contents c ON c.id = m.content
        LEFT JOIN repositories r ON r.id = m.repository WHERE c.id IS NULL OR r.id IS NULL""",
    "no content without a manifest": "SELECT id FROM contents WHERE id NOT IN (SELECT content FROM manifests)",
    "a tag points to a manifest of its repository": """
        SELECT t.* FROM tags t LEFT JOIN manifests m ON m.content = t.content AND m.repository = t.repository
        WHERE m.content IS NULL""",
    "named blobs and children belong to a manifest": """
        SELECT content, repository FROM (SELECT content, repository FROM manifest_blobs
        UNION SELECT content, repository FROM manifest_children)
        EXCEPT SELECT content, repository FROM manifests""",
    "referrers are the manifests with a subject": """
        SELECT m.content, m.repository, m.subject, c.digest FROM manifests m JOIN contents c ON c.id = m.content
        WHERE m.subject IS NOT NULL EXCEPT SELECT content, repository, subject, digest FROM referrers""",
    "no referrer without its manifest": """
        SELECT content, repository, subject, digest FROM referrers
        EXCEPT SELECT m.content, m.repository, m.subject, c.digest FROM manifests m
        JOIN contents c ON c.id = m.content""",
    "a subject with referrers has a change index": """
        SELECT repository, subject FROM referrers EXCEPT SELECT repository, digest FROM subjects""",
    "a list is as new as what it lists": """
        SELECT m.* FROM manifests m LEFT JOIN subjects s ON s.repository = m.repository AND s.digest = m.subject
        WHERE m.subject IS NOT NULL AND s.changed < m.changed""",
    "a change index is a position that was applied": """
        SELECT changed FROM (SELECT changed FROM links UNION SELECT changed FROM manifests
        UNION SELECT changed FROM tags UNION SELECT changed FROM subjects UNION SELECT tags_changed FROM repositories
        UNION SELECT catalog_changed FROM meta UNION SELECT entry FROM staged UNION SELECT id FROM proposers)
        WHERE changed > (SELECT applied FROM meta)""",
    "nothing is from the future": """
        SELECT t FROM (SELECT time_ms AS t FROM staged UNION SELECT used_ms FROM proposers)
        WHERE t > (SELECT log_time_ms FROM meta)""",
    "outcomes lie above a proposer's watermark, within the bound": """
        SELECT o.* FROM outcomes o LEFT JOIN proposers p ON p.id = o.proposer
        WHERE p.id IS NULL OR o.sequence <= p.acknowledged OR o.sequence > p.acknowledged + 65536""",
    "parts are numbered within their count": "SELECT entry FROM staged WHERE part < 0 OR part >= parts",
    "parts of one content agree on their count": """
        SELECT repository, digest FROM staged GROUP BY repository, digest HAVING count(DISTINCT parts) > 1""",
    "staged bytes are bounded": """
        SELECT * FROM (SELECT sum(length(content)) AS size, count(*) AS n FROM staged)
        WHERE size > 67108864 OR n > 2048""",
    "proposers are bounded": "SELECT * FROM (SELECT count(*) AS n FROM proposers) WHERE n > 4096",
}

_CHANGES = """
    SELECT 'catalog', 0, '', catalog_changed FROM meta
    UNION ALL SELECT 'tags of', id, '', tags_changed FROM repositories
    UNION ALL SELECT 'tag', repository, name, changed FROM tags
    UNION ALL SELECT 'link', repository, blob, changed FROM links
    UNION ALL SELECT 'manifest', repository, content, changed FROM manifests
    UNION ALL SELECT 'subject', repository, hex(digest), changed FROM subjects"""

Changes = dict[tuple[str, int, str | int], int]


def check(connection: sqlite3.Connection) -> None:
    """Raises AssertionError naming the rule and the first rows that break it."""
    for rule, query in _CONTRADICTIONS.items():
        rows = connection.execute(f"{query} LIMIT 3").fetchall()
        assert not rows, f"not so: {rule}: {rows}"
    for packed, size_bytes, content in connection.execute("SELECT digest, size_bytes, bytes FROM contents"):
        digest = Digest.from_bytes(packed)
        assert len(content) == size_bytes, f"{digest} is not {size_bytes} bytes"
        assert hashlib.new(digest.algorithm, content).hexdigest() == digest.hex, f"{digest} has other bytes"
    for index, outcome in connection.execute("SELECT applied, outcome FROM outcomes, meta"):
        assert decode_outcome(outcome).index <= index


def changes(connection: sqlite3.Connection) -> Changes:
    """Every change index, by what it is of."""
    return {(kind, first, second): changed for kind, first, second, changed in connection.execute(_CHANGES)}


def check_progress(before: Changes, after: Changes) -> None:
    """No change index goes back, and those of lists survive what they list."""
    for key, changed in before.items():
        if key[0] in ("catalog", "tags of", "subject"):
            assert key in after, f"{key} lost its change index"
        assert after.get(key, changed) >= changed, f"{key} went back from {changed} to {after[key]}"
