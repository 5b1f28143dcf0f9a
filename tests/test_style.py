"""The two files stay small, plain and without dependencies: what the README promises of them."""
import ast
import io
import os
import subprocess
import sys
import tokenize
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAMES = "acme_tiny.py", "letsencrypt_tiny.py"
CODE_LINES, FUNCTION_LINES, COLUMNS = 1645, 60, 100
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
           tokenize.ENDMARKER)


def code_lines(source, tree):
    """The numbers of all lines that hold more than blanks, comments and docstrings."""
    lines, docstrings = set(), set()
    for node in ast.walk(tree):
        if (isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
                and ast.get_docstring(node)):
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - docstrings


class Style(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.files = []
        for name in NAMES:
            with open(os.path.join(ROOT, name), encoding="utf-8") as file:
                source = file.read()
            cls.files.append((name, source, ast.parse(source)))

    def nodes(self, *kinds):
        for name, _, tree in self.files:
            for node in ast.walk(tree):
                if isinstance(node, kinds):
                    yield "%s:%d" % (name, getattr(node, "lineno", 0)), node

    def test_code_size(self):
        total = sum(len(code_lines(source, tree)) for _, source, tree in self.files)
        self.assertGreater(total, 100)
        self.assertLessEqual(total, CODE_LINES)

    def test_functions_are_short(self):
        long = [(where, node.name) for where, node in self.nodes(ast.FunctionDef)
                if node.end_lineno - node.lineno + 1 > FUNCTION_LINES]
        self.assertEqual(long, [])

    def test_lines_are_narrow(self):
        wide = ["%s:%d" % (name, number) for name, source, _ in self.files
                for number, line in enumerate(source.split("\n"), 1) if len(line) > COLUMNS]
        self.assertEqual(wide, [])

    def test_text_is_plain(self):
        """Nothing that an editor shows otherwise than Python reads it."""
        odd = ["%s:%d" % (name, number) for name, source, _ in self.files
               for number, line in enumerate(source.split("\n"), 1)
               if not (line.isascii() and line.isprintable()) or line != line.rstrip()]
        self.assertEqual(odd, [])

    def test_only_the_standard_library(self):
        modules = {module for _, node in self.nodes(ast.Import, ast.ImportFrom)
                   for module in ([node.module] if isinstance(node, ast.ImportFrom)
                                  else [alias.name for alias in node.names])} - {"acme_tiny"}
        # -I and -S: nothing but the standard library can be found.
        subprocess.run([sys.executable, "-IS", "-c", "import " + ", ".join(sorted(modules))],
                       check=True)

    def test_no_assert_and_no_shell(self):
        self.assertEqual([where for where, _ in self.nodes(ast.Assert)], [])
        self.assertEqual([where for where, node in self.nodes(ast.keyword) if node.arg == "shell"],
                         [])
        calls = [where for where, node in self.nodes(ast.Call) if getattr(
            node.func, "attr", getattr(node.func, "id", "")) in ("system", "popen", "eval", "exec")]
        self.assertEqual(calls, [])

    def test_public_functions_have_docstrings(self):
        bare = [(name, node.name) for name, _, tree in self.files for node in tree.body
                if isinstance(node, ast.FunctionDef)
                and not node.name.startswith("_") and not ast.get_docstring(node)]
        self.assertEqual(bare, [])

    def test_start_up_imports_little(self):
        """A cron run with nothing to do must not pay for TLS, HTTP or child processes."""
        script = "import sys; sys.path.insert(0, sys.argv[1]); import letsencrypt_tiny;" \
                 "print(*sys.modules)"
        result = subprocess.run([sys.executable, "-IS", "-c", script, ROOT],
                                stdout=subprocess.PIPE, universal_newlines=True, check=True)
        loaded = {"ssl", "urllib", "http", "subprocess", "logging", "socket"} & \
            set(result.stdout.split())
        self.assertEqual(loaded, set())


if __name__ == "__main__":
    unittest.main()
