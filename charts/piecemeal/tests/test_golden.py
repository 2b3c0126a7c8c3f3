"""Each value that the vendor's chart has, and ours where it matters, and the field of the object that it becomes: golden.tsv."""

import fnmatch
import json
import tomllib
import unittest

from chart import CHART, by_key, with_set

ROWS = [line.split("\t") for line in (CHART / "tests/golden.tsv").read_text().splitlines() if line and not line.startswith("#")]


def at(value, path):
    """A JSON pointer without its first slash. A text of TOML on the way is read as such."""
    for step in path.split("/"):
        step = step.replace("~1", "/")
        if isinstance(value, str):
            value = tomllib.loads(value)
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


class Golden(unittest.TestCase):
    def test_every_value_becomes_the_field_that_it_stands_for(self):
        for settings, name, path, expected in ROWS:
            with self.subTest(settings=settings, object=name, path=path):
                objects = by_key(with_set(*settings.split(" ")) if settings != "-" else with_set())
                if expected == "absent" and path == "-":
                    self.assertEqual(fnmatch.filter(objects, name), [])
                elif expected == "present" and path == "-":
                    self.assertTrue(fnmatch.filter(objects, name), sorted(objects))
                elif expected.startswith("nowhere "):
                    self.assertNotIn(expected[8:], json.dumps(list(objects.values())))
                elif expected.startswith("has "):
                    self.assertIn(json.loads(expected[4:]), at(objects[name], path))
                elif expected.startswith("lacks "):
                    self.assertNotIn(json.loads(expected[6:]), at(objects[name], path))
                else:
                    self.assertEqual(at(objects[name], path), json.loads(expected))


if __name__ == "__main__":
    unittest.main()
