"""The page's own queries, made by its code outside of a browser: what it sends is what the service takes."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import rapt.service.page
from code_material import codes_manifest
from rapt.wire.manifest import dump_manifest
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, dump_query, parse_query, seal_manifest

QUERY = Path(rapt.service.page.__file__).parent / "static" / "query.js"
NODE = shutil.which("node")
PROGRAM = """
import { readFileSync } from "node:fs";
const { readQuery, seal, manifestFor, readIds } = await import(process.argv[1]);
const given = JSON.parse(readFileSync(0, "utf8"));
const typed = () => ({ manifest: manifestFor(given.setting), records: readIds(given.ids) });
const asked = given.text ? readQuery(given.text) : typed();
console.log(JSON.stringify(await seal(asked)));
"""

pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js")


def sealed(given):
    command = [NODE, "--input-type=module", "-e", PROGRAM, str(QUERY)]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    return parse_query(sent["manifest"], sent["records"])


@pytest.mark.parametrize("pairs", [False, True])
def test_a_file_of_codes_is_a_query_of_the_page(pairs):
    records = tuple(
        PrivatizedRecord(token_ids=(i,), label=i % 2, second_token_ids=(i + 1,) if pairs else None) for i in range(4)
    )
    manifest = seal_manifest(codes_manifest(pairs=pairs), records)
    query = dump_query(PrivatizedFile(manifest=manifest, records=records))
    lines = [json.dumps(query["manifest"]), *map(json.dumps, query["records"])]
    found = sealed({"text": "\n".join(lines)})
    assert (found.manifest.schema, found.manifest.labels, found.manifest.pairs) == ("rapt.codes/1", None, pairs)
    assert [record.token_ids for record in found.records] == [(0,), (1,), (2,), (3,)]


def test_codes_that_are_typed_are_a_query_of_codes():
    mechanism = dump_manifest(codes_manifest())["mechanism"]
    setting = {"model": "a-code", "vocabularyHash": "sha256:" + "ab" * 32, "mechanism": mechanism}
    found = sealed({"setting": setting, "ids": "3\n11"})
    assert (found.manifest.unit, [record.token_ids for record in found.records]) == ("text", [(3,), (11,)])


def test_ids_of_tokens_that_are_typed_are_a_query_as_before():
    setting = {"model": "m", "vocabularyHash": "h", "mechanism": {"name": "laplace", "parameters": {"eta": 75}}}
    found = sealed({"setting": setting, "ids": "2204 2307"})
    assert (found.manifest.schema, found.records[0].token_ids) == ("rapt.privatized/1", (2204, 2307))
