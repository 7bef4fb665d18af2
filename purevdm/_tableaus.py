"""The coefficients of Runge-Kutta steps.

Those of order 5 are of Dormand & Prince (1980). Those of order 8, with errors of orders 5 and 3, are of Dormand & Prince as
Hairer, Norsett & Wanner (1993, "Solving Ordinary Differential Equations I", sec. II.10) publish them in their code DOP853.
"""

import math
from typing import NamedTuple


class Tableau(NamedTuple):
    """The coefficients of an explicit Runge-Kutta step: stage i is at t + nodes[i] h, from the slopes before it with the
    weights rows[i]; the step ends by ``weights``. Each of ``errors`` holds weights that estimate its error, as its order
    goes; then the last stage is the next step's first. ``interpolant`` gives the state inside a step, to order 4.
    ``quadrature`` has weights for an integral along the step, with stages of its own at the end: :func:`with_quadrature`."""

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    errors: tuple[tuple[float, ...], ...] = ()
    order: int = 0
    interpolant: tuple[float, ...] = ()
    quadrature: tuple[float, ...] = ()


HEUN = Tableau((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2))
RK4 = Tableau((0.0, 1 / 2, 1 / 2, 1.0), ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
_LAST = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
DOPRI5 = Tableau(
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _LAST,
    ),
    (*_LAST, 0.0),
    ((71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),),
    5,
    (
        -12715105075 / 11282082432,
        0.0,
        87487479700 / 32700410799,
        -10690763975 / 1880347072,
        701980252875 / 199316789632,
        -1453857185 / 822651844,
        69997945 / 29380423,
    ),
)


def _after(entries: dict[int, float], n: int = 12) -> tuple[float, ...]:
    """A row from those of its entries that are not zero."""
    return tuple(entries.get(i, 0.0) for i in range(n))


_EIGHTH = _after(
    {
        0: 0.054293734116568765,
        5: 4.450312892752409,
        6: 1.8915178993145003,
        7: -5.801203960010585,
        8: 0.3111643669578199,
        9: -0.1521609496625161,
        10: 0.20136540080403034,
        11: 0.04471061572777259,
    }
)
_FIFTH = {
    0: 0.01312004499419488,
    5: -1.2251564463762044,
    6: -0.4957589496572502,
    7: 1.6643771824549864,
    8: -0.35032884874997366,
    9: 0.3341791187130175,
    10: 0.08192320648511571,
    11: -0.022355307863886294,
}
_THIRD = {0: 0.2440944881889764, 8: 0.7338466882816118, 11: 0.022058823529411766}
DOP853 = Tableau(
    (
        0.0,
        0.05260015195876773,
        0.0789002279381516,
        0.1183503419072274,
        0.2816496580927726,
        1 / 3,
        1 / 4,
        4 / 13,
        127 / 195,
        3 / 5,
        6 / 7,
        1.0,
        1.0,
    ),
    (
        (),
        (0.05260015195876773,),
        (0.0197250569845379, 0.0591751709536137),
        (0.02958758547680685, 0.0, 0.08876275643042054),
        (0.2413651341592667, 0.0, -0.8845494793282861, 0.924834003261792),
        (1 / 27, 0.0, 0.0, 0.17082860872947386, 0.12546768756682242),
        (19 / 512, 0.0, 0.0, 0.17025221101954405, 0.06021653898045596, -9 / 512),
        (
            0.03709200011850479,
            0.0,
            0.0,
            0.17038392571223998,
            0.10726203044637328,
            -0.015319437748624402,
            0.008273789163814023,
        ),
        (
            0.6241109587160757,
            0.0,
            0.0,
            -3.3608926294469414,
            -0.868219346841726,
            27.59209969944671,
            20.154067550477894,
            -43.48988418106996,
        ),
        (
            0.47766253643826434,
            0.0,
            0.0,
            -2.4881146199716677,
            -0.590290826836843,
            21.230051448181193,
            15.279233632882423,
            -33.28821096898486,
            -0.020331201708508627,
        ),
        (
            -0.9371424300859873,
            0.0,
            0.0,
            5.186372428844064,
            1.0914373489967295,
            -8.149787010746927,
            -18.52006565999696,
            22.739487099350505,
            2.4936055526796523,
            -3.0467644718982196,
        ),
        (
            2.273310147516538,
            0.0,
            0.0,
            -10.53449546673725,
            -2.0008720582248625,
            -17.9589318631188,
            27.94888452941996,
            -2.8589982771350235,
            -8.87285693353063,
            12.360567175794303,
            0.6433927460157636,
        ),
        _EIGHTH,
    ),
    (*_EIGHTH, 0.0),
    (_after(_FIFTH, 13), _after({i: w - _THIRD.get(i, 0.0) for i, w in enumerate(_EIGHTH)}, 13)),
    8,
)


# Lobatto's rules on [0, 1] by their number of points: the inner ones, their weight, and that of either end.
LOBATTO: dict[int, tuple[tuple[float, ...], float, float]] = {
    2: ((), 0.0, 1 / 2),
    3: ((0.5,), 2 / 3, 1 / 6),
    4: ((0.5 - math.sqrt(1 / 20), 0.5 + math.sqrt(1 / 20)), 5 / 12, 1 / 12),
}


def with_quadrature(tableau: Tableau, count: int) -> Tableau:
    """A pair with the points of Lobatto's rule, of order 2 count - 2.

    They are the first stage, the last, and inner points behind them. The ends cost nothing but the rate there, and the last
    is the next step's first. At the inner points the state is y + h b(theta) . slopes, with

        b(theta) = theta w + theta (1 - theta) (first - w + theta (2 w - first - last + (1 - theta) d)),

    w the weights, d the tableau's ``interpolant``, first and last the unit vectors of those stages (Hairer, Norsett & Wanner
    1993, sec. II.6).
    """
    n = len(tableau.nodes)
    inner, weight, end = LOBATTO[count]

    def row(theta: float) -> tuple[float, ...]:
        def entry(i: int) -> float:
            w, d, first, last = tableau.weights[i], tableau.interpolant[i], float(i == 0), float(i == n - 1)
            rest = 2.0 * w - first - last + (1.0 - theta) * d
            return theta * w + theta * (1.0 - theta) * (first - w + theta * rest)

        return tuple(entry(i) for i in range(n))

    quadrature = (end, *[0.0] * (n - 2), end, *[weight] * len(inner))
    rows = (*tableau.rows, *(row(theta) for theta in inner))
    return tableau._replace(nodes=(*tableau.nodes, *inner), rows=rows, quadrature=quadrature)
