"""The compilers of the tests.

Inductor takes most of a test's time to make code. So a test whose graph another test's resembles runs by default without
it: the graph is traced, differentiated and decomposed as ever, and then run by eager kernels. With the slow tests
(``pytest -m slow``) inductor makes the code of these, too.
"""

import pytest

every_backend = pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
