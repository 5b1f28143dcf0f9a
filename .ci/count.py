"""Exit status and log of a step -> tests run, failed and skipped, for .ci/run.

A log with unittest's "Ran N tests" counts as these tests, one that ends with "N passed, N failed,
N skipped" as that many, any other as one."""
import re
import sys

status, path = int(sys.argv[1]), sys.argv[2]
with open(path, encoding='utf-8', errors='replace') as file:
    log = file.read()
ran = sum(map(int, re.findall(r'^Ran (\d+) tests? in ', log, re.M)))
verdict = ' '.join(re.findall(r'^(?:OK|FAILED|NO TESTS RAN)(?: \(.*\))?$', log, re.M))
failed = sum(map(int, re.findall(r'(?:failures|errors|unexpected successes)=(\d+)', verdict)))
skipped = sum(map(int, re.findall(r'skipped=(\d+)', verdict)))
plain = re.findall(r'^(\d+) passed, (\d+) failed, (\d+) skipped$', log, re.M)
if plain and not ran:
    ran, failed, skipped = sum(map(int, plain[-1])), int(plain[-1][1]), int(plain[-1][2])
# A class that could not be set up is an error that ran no test, and nothing at all is no success.
if ran == 0 or status and not failed:
    ran, failed = ran + 1, failed or int(bool(status) or bool(verdict))
print(max(ran, failed + skipped), failed, skipped)
