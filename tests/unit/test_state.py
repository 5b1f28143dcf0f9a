"""The state file, the one module that knows what is in there: what is believed of it, and that
nothing in it breaks a run."""
import json
import tempfile
import time
import unittest

from letsencrypt_tiny import Line, read_state
from tests.world.case import Case, plain_config as config, plant
from tests.world.line import CERTCHANGE, KEYCHANGE
from tests.world.support import read, write

NOW = 2000000000


def retry(seconds, server=0, **others):
    """The note of a failed request: the next one may be made in so many seconds."""
    return dict({'count': 2, 'after': NOW + seconds, 'server': server, 'error': 'broke',
                 'names': ['example.org'], 'crts': ['a', ''], 'directory': 'https://a/'}, **others)


class Read(unittest.TestCase):
    """What cannot be believed is left out, alone: hooks run once more, clocks start anew."""
    GOOD = {
        'config': '/x/conf', 'certchange': 'crt A', 'keychange': {'keys': ['A', ''], 'at': NOW},
        'dns': {'keys': ['A', 'B'], 'asked': ['_25._tcp.a'], 'found': {'a': NOW, 'b': 0}, 'ttl': 60,
                'until': 0, 'fits': ['A'], 'wrong': [], 'outage': ['x'], 'at': NOW},
        'served': {'key': 'A', 'services': ['a:25'], 'wrong': [], 'at': NOW},
        'account': {'directory': 'https://a/', 'url': 'https://a/1', 'thumbprint': 'x',
                    'contact': None},
        'issued': {'a': 'https://a/'}, 'retry': retry(500),
        'order': {'url': 'https://a/2', 'key': 'A', 'names': ['a'], 'directory': 'https://a/',
                  'crt': '', 'tries': 0},
        'challenges': ['/x/w/token'], 'told': {'skew': {'text': 'x', 'at': NOW}}}

    def read(self, text):
        with tempfile.TemporaryDirectory() as folder:
            with open(folder + '/live.state', 'wb') as file:
                file.write(text if isinstance(text, bytes) else json.dumps(text).encode())
            return read_state(Line(config(certs=folder)))

    def test_good(self):
        self.assertEqual(self.read(self.GOOD), self.GOOD)

    def test_missing_folder(self):
        self.assertEqual(read_state(Line(config(certs='/nonexistent'))), {})

    def test_garbage(self):
        for text in (b'', b'{', b'\0' * 100, b'[]', b'[[]]', b'null', b'5', b'"x"', b'\xff\xfe{}',
                     b'{"certchange": "crt A"', b'[' * 100000, b'{"a":' * 100000, b'[[1, 2], [3]]',
                     b'[["certchange", "x", "y"]]'):
            with self.subTest(text[:30]):
                self.assertEqual(self.read(text), {})

    def test_wrong_types(self):
        wrong = {name: [5, None, True, 'x', [], {}, [5], ['x'], {'a': 5}] for name in self.GOOD}
        for name, texts in (('config', 'x'), ('certchange', 'x'), ('issued', {}), ('told', {}),
                            ('challenges', [])):
            wrong[name].remove(texts)   # that is a good one
        for name in 'keychange', 'dns', 'served', 'account', 'retry', 'order':
            good = self.GOOD[name]
            wrong[name] += [dict(good, **{key: value}) for key in good if key != 'contact'
                            for value in (7 if isinstance(good[key], (str, list, dict)) else 'x',
                                          [[]], {'x': 'y'})]
        for name, values in wrong.items():
            rest = {key: value for key, value in self.GOOD.items() if key != name}
            for value in values:
                with self.subTest(name=name, value=value):
                    self.assertEqual(self.read(dict(self.GOOD, **{name: value})), rest)

    def test_numbers_that_are_none(self):
        for value in b'Infinity', b'-Infinity', b'NaN', b'1e999', b'9' * 5000:
            text = json.dumps(self.GOOD).replace('"at": %d' % NOW, '"at": ' + value.decode())
            self.read(text.encode())    # whatever becomes of it

    def test_the_state_of_the_program_before(self):
        """Hooks run once more at worst, and nobody registers again."""
        account = {'directory': 'https://a/', 'url': 'https://a/1', 'thumbprint': 'x'}
        old = {'certchange': 'crt A', 'keychange': ['A', 'B'], 'published': NOW, 'seen': NOW,
               'ttl': 60, 'account': account, 'owed': ['post-certchange'],
               'retry': {'count': 2, 'after': NOW, 'server': True, 'error': 'broke',
                         'names': ['example.org'], 'directory': 'https://a/'}}
        self.assertEqual(self.read(old), {'certchange': 'crt A', 'account': account})

    def test_what_is_removed_lies_where_challenges_lie(self):
        for wrong in 'relative/token', '../token', '/x/w/../../etc/passwd.conf', '/x/w/a b', '':
            self.assertNotIn('challenges', self.read(dict(self.GOOD, challenges=[wrong])))


class Strange(Case):
    def test_strange_entries(self):
        """Whatever is in there, no run breaks on it."""
        line = self.settled([CERTCHANGE, KEYCHANGE])
        good = json.loads(read(line.state_file()).decode())
        deep = []
        for _ in range(400):
            deep = [deep]
        past = retry(time.time() - NOW - 5, count=3, directory=self.ca.directory_url)
        strange = [{'challenges': ['/\0/token']}, {'challenges': ['/x\ud800/token']},
                   {'challenges': ['/' + 'x/' * 5000 + 'token']}, {'owed': deep},
                   {'seen': 10**300}, {'what': 'is this'}, {'retry': dict(past, count=-100)},
                   {'retry': dict(past, count=10**300, error='\ud800\x1b[2J'), 'account': {
                       'directory': self.ca.directory_url, 'url': '\ud800', 'thumbprint': ''}}]
        for entry in strange:
            with self.subTest(str(entry)[:60]):
                write(line.state_file(), json.dumps(dict(good, **entry)))
                if 'retry' in entry:
                    plant(line, self.ca, age=65, key='live')
                line.run('status')
                done = line.run('cron', hooks=True)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertNotIn('Traceback', done.stderr)
                self.good()


if __name__ == '__main__':
    unittest.main()
