"""A short walk through the simulation, which CI takes for longer, and proof that it notices."""
import os
import subprocess
import sys
import unittest

from tests.simulation import BREAKS, Life, Violation, plain_config, simulate

HERE = os.path.dirname(os.path.abspath(__file__))


class Simulation(unittest.TestCase):
    def test_some_years(self):
        years, counts, failure = simulate(60, 1, seconds=20)
        if failure:
            self.fail('seed %d: %s (python3 tests/simulation.py --seed %d --trace)' % (
                *failure, failure[0]))
        for what in ('settled', 'rollovers', 'crashes', 'disk errors', 'failed requests',
                     'retry-after'):
            self.assertGreater(counts[what], 0, what)

    def test_it_is_deterministic(self):
        first, second = [], []
        for notes in first, second:
            life = Life(7, 'clock-from-key-age', notes.append)
            with self.assertRaises(Violation) as caught:
                life.play()
            notes.append(str(caught.exception))
        self.assertGreater(len(first), 10)
        self.assertEqual(first, second)

    def test_it_notices_what_is_wrong(self):
        """Each design that was not taken breaks something before long."""
        wanted = {'clock-from-key-age': 'a service uses', 'keychange-first': 'a service uses',
                  'started-is-done': 'a service uses', 'word-of-the-hook': 'a service uses',
                  'one-look': 'a service uses', 'no-back-off': 'before the CA allows it'}
        self.assertLessEqual(set(wanted), set(BREAKS))
        for name, words in wanted.items():
            with self.subTest(name):
                _, _, failure = simulate(100, 1, name, 20)
                self.assertIsNotNone(failure)
                self.assertIn(words, str(failure[1]))

    def test_command_line(self):
        program = [sys.executable, os.path.join(HERE, 'simulation.py'), '--seed', '1']
        done = subprocess.run(program + ['--years', '100', '--break', 'keychange-first'],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding='utf-8')
        self.assertEqual((done.returncode, done.stderr), (1, ''))
        self.assertRegex(done.stdout, r'(?m)^seed \d+: a service uses')
        self.assertRegex(done.stdout, r'--seed \d+ --trace --break keychange-first\n\Z')

    def test_config(self):
        """The options of these lives are those of the program."""
        self.assertEqual(plain_config(staging_hours=5.0).staging_hours, 5)
        with self.assertRaises(TypeError):
            plain_config(unknown=1)


if __name__ == '__main__':
    unittest.main()
