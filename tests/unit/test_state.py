"""The state file, the one module that knows what is in there: what is believed of it, and that
nothing in it breaks a run."""
import json
import tempfile
import time
import unittest

from letsencrypt_tiny import read_state
from tests.lab.simulation import plain_config as config
from tests.world.case import Case, plant
from tests.world.line import CERTCHANGE, DAY, HOUR, KEYCHANGE
from tests.world.support import read, write

NOW = 2000000000


def retry(seconds, server=False, **others):
    """The note of a failed request: the next one may be made in so many seconds."""
    return dict({'count': 2, 'after': NOW + seconds, 'server': server, 'error': 'broke',
                 'names': ['example.org'], 'directory': config().directory_url}, **others)


class Read(unittest.TestCase):
    """What cannot be believed is left out, alone: hooks run once more, clocks start anew."""
    GOOD = {'certchange': 'crt A', 'keychange': ['A', 'B'], 'published': NOW - 5 * HOUR,
            'seen': NOW - 4 * HOUR, 'challenges': ['/x/w/token'], 'owed': ['a'],
            'account': {'directory': 'https://a/', 'url': 'https://a/1', 'thumbprint': 'x'},
            'retry': retry(500)}

    def read(self, text):
        with tempfile.TemporaryDirectory() as folder:
            with open(folder + '/live.state', 'wb') as file:
                file.write(text if isinstance(text, bytes) else json.dumps(text).encode())
            return read_state(config(certs=folder), NOW)

    def test_good(self):
        self.assertEqual(self.read(self.GOOD), self.GOOD)

    def test_missing_folder(self):
        self.assertEqual(read_state(config(certs='/nonexistent'), NOW), {})

    def test_garbage(self):
        for text in (b'', b'{', b'\0' * 100, b'[]', b'[[]]', b'null', b'5', b'"x"', b'\xff\xfe{}',
                     b'{"certchange": "crt A"', b'[' * 100000, b'{"a":' * 100000, b'[[1, 2], [3]]',
                     b'[["certchange", "x", "y"]]'):
            with self.subTest(text[:30]):
                self.assertEqual(self.read(text), {})

    def test_wrong_types(self):
        wrong = {'certchange': [5, None, ['x'], {}, True], 'keychange': ['A', 5, None, {}, True],
                 'published': ['5', None, [5], {}, True], 'seen': ['5', None, [5], {}, True],
                 'challenges': ['/x/w/token', [5], {}, 5, [None], [['x']]],
                 'account': ['x', [], {}, {'directory': 5, 'url': 'x', 'thumbprint': 'x'}],
                 'owed': ['x', {}, 5],
                 'retry': [5, [], {}, 'x', dict(self.GOOD['retry'], count='2'),
                           dict(self.GOOD['retry'], after=None),
                           dict(self.GOOD['retry'], server='yes'),
                           dict(self.GOOD['retry'], names='example.org'),
                           dict(self.GOOD['retry'], names=[5]),
                           dict(self.GOOD['retry'], error=None)]}
        for name, values in wrong.items():
            rest = {key: value for key, value in self.GOOD.items() if key != name}
            for value in values:
                with self.subTest(name=name, value=value):
                    self.assertEqual(self.read(dict(self.GOOD, **{name: value})), rest)

    def test_times_in_the_future(self):
        # What was seen is dated by the CA's clock, which may be ahead of ours.
        for name, near in ('published', 0), ('seen', HOUR):
            rest = {key: value for key, value in self.GOOD.items() if key != name}
            for value in (NOW + near + 5, NOW + 99 * DAY, 1e300, -5):
                with self.subTest(name=name, value=value):
                    self.assertEqual(self.read(dict(self.GOOD, **{name: value})), rest)
            given = dict(self.GOOD, **{name: NOW + near})
            self.assertEqual(self.read(given), given)
            for value in b'Infinity', b'-Infinity', b'NaN', b'1e999', b'9' * 5000:
                text = json.dumps(dict(self.GOOD, **{name: 0}))
                text = text.replace('"%s": 0' % name, '"%s": %s' % (name, value.decode()))
                self.assertNotIn(name, self.read(text.encode()))
        rest = {key: value for key, value in self.GOOD.items() if key != 'retry'}
        for seconds, server, kept in ((DAY - 1, False, True), (2 * DAY, False, False),
                                      (7 * DAY, True, True), (9 * DAY, True, False),
                                      (1e300, True, False)):
            with self.subTest(seconds=seconds, server=server):
                given = dict(self.GOOD, retry=retry(seconds, server))
                self.assertEqual(self.read(given), given if kept else rest)

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
