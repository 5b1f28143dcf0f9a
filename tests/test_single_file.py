"""examples/single-file: the rules that make one file of the two sources safe."""
import ast
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILDER = os.path.join(ROOT, "examples", "single-file")
SOURCES = "acme_tiny.py", "letsencrypt_tiny.py"


def build(folder=ROOT):
    return subprocess.run([sys.executable, BUILDER, folder], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)


def code(text):
    """The lines of `text` that are neither blank nor a comment."""
    return [line for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]


class SingleFile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        result = build()
        if result.returncode:
            raise AssertionError(result.stderr.decode())
        cls.folder = tempfile.mkdtemp()
        cls.path = os.path.join(cls.folder, "letsencrypt-tiny")
        cls.data = result.stdout
        with open(cls.path, "wb") as file:
            file.write(cls.data)
        os.chmod(cls.path, 0o755)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def run_built(self, *args):
        # Not through the shebang: the system's python3 need not be the one under test.
        return subprocess.run([sys.executable, "-IS", self.path] + list(args), cwd=self.folder,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def test_two_builds_are_equal(self):
        self.assertEqual(build().stdout, self.data)

    def test_other_pythons_build_the_same_bytes(self):
        for minor in range(8, 15):
            python = shutil.which("python3.%d" % minor)
            # A version manager's stub for a version that is not there fails.
            if python and not subprocess.run([python, "-c", ""],
                                             stderr=subprocess.DEVNULL).returncode:
                with self.subTest(python):
                    other = subprocess.run([python, BUILDER, ROOT], stdout=subprocess.PIPE)
                    self.assertEqual(other.stdout, self.data)

    def test_first_line_isolates_and_the_rest_compiles(self):
        text = self.data.decode("utf-8")
        self.assertTrue(text.startswith("#!/usr/bin/python3 -IS\n"))
        self.assertEqual(text.count("\n#!"), 0)
        self.assertNotIn("import acme_tiny", text)
        self.assertNotIn("from acme_tiny import", text)
        compile(text, self.path, "exec")

    def test_it_is_the_two_sources_and_nothing_else(self):
        sources = []
        for name in SOURCES:
            with open(os.path.join(ROOT, name), encoding="utf-8") as file:
                sources += code(file.read())
        strange = [line for line in code(self.data.decode("utf-8")) if line not in sources]
        self.assertEqual(strange, [])

    def test_each_top_level_name_is_defined_once(self):
        names = [node.name for node in ast.parse(self.data).body
                 if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        self.assertEqual(sorted(names), sorted(set(names)))
        self.assertEqual(names.count("main"), 1)

    def test_version_is_the_sha256_of_the_running_file(self):
        result = self.run_built("--version")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(hashlib.sha256(self.data).hexdigest(), result.stdout.decode())

    def test_it_runs_beside_a_module_that_shadows_the_standard_library(self):
        for name in "json.py", "argparse.py", "acme_tiny.py":
            with open(os.path.join(self.folder, name), "w") as file:
                file.write("raise SystemExit('a stray module was run')\n")
            self.addCleanup(os.unlink, file.name)
        result = self.run_built("--help")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(b"cron", result.stdout)


class Refused(unittest.TestCase):
    """Small sources that would not mean the same as one file."""
    INNER = "#!/x\ndef get():\n    return 1\n\n\ndef main():\n    get()\n\n\n" \
            "if __name__ == '__main__':\n    main()\n"
    OUTER = ("#!/x\n'''Doc.'''\nfrom acme_tiny import (\n    get)\n\n\n"
             "def main():\n    print(get())\n")

    def build(self, inner=INNER, outer=OUTER):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in zip(SOURCES, (inner, outer)):
                with open(os.path.join(folder, name), "w") as file:
                    file.write(text)
            return build(folder)

    def refused(self, word, **sources):
        result = self.build(**sources)
        self.assertEqual((result.returncode, result.stdout), (1, b""))
        self.assertIn(word, result.stderr.decode())

    def test_plain_and_in_a_try(self):
        lines = ["def get():", "    return 1", "def main():", "    print(get())"]
        guarded = self.OUTER.replace("from acme_tiny import (\n    get)\n",
                                     "try:\n    from acme_tiny import get\nexcept ImportError:\n"
                                     "    raise SystemExit('copy both')\n")
        for outer in self.OUTER, guarded:
            result = self.build(outer=outer)
            self.assertEqual(result.stderr, b"")
            self.assertEqual(code(result.stdout.decode())[1:], lines)

    def test_no_import_or_two(self):
        self.refused("one plain", outer="#!/x\nx = 1\n")
        self.refused("one plain", outer=self.OUTER + "from acme_tiny import get\n")
        self.refused("one plain", outer=self.OUTER.replace("get)", "get as g)"))
        self.refused("top level", outer="#!/x\nif x:\n    from acme_tiny import get\n")

    def test_clash(self):
        self.refused("in both files: get", outer=self.OUTER + "get = 2\n")
        self.refused("in both files: a, b", outer=self.OUTER + "for a, b in ():\n    pass\n",
                     inner=self.INNER.replace("def get", "a = b = 1\n\n\ndef get"))

    def test_name_that_is_not_there(self):
        self.refused("not in acme_tiny.py: got", outer=self.OUTER.replace("get)", "get, got)"))

    def test_main_that_something_else_needs(self):
        self.refused("needs its main", inner=self.INNER.replace("return 1", "return main"))

    def test_guard_and_future(self):
        self.refused("__main__ guard", inner=self.INNER + "x = 1\n")
        self.refused("__future__", inner="#!/x\nfrom __future__ import annotations\n"
                                         + self.INNER[5:])


if __name__ == "__main__":
    unittest.main()
