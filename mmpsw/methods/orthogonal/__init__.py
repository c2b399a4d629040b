"""Orthogonal over-parameterised training, OPT (Liu et al. 2021).

A layer's neurons are the rows of ``N = N0 Q^T``: N0 (c_out, d) is random and
fixed, and what is learned is the orthogonal Q (d, d), which turns all of them
together. So the angles between them, and their hyperspherical energy, stay
what they were. d is c_in k k. (The paper's W = Q W0 is N transposed.)

    Q = map(R)                                  R (d, d) is what is trained
    dL/dR = (dQ/dR)^T (dL/dN^T N0)              by the chain rule, and then
    R <- R - lr dL/dR;   N <- N0 Q^T            as the optimizer does it

(arXiv 2004.04690; checked against the authors' code, wy1iu/OPT.)
"""
from .maps import MAPS, Cayley, descend, newton_steps
from .training import (
    OrthogonalConv2d,
    OrthogonalTraining,
    hyperspherical_energy,
    minimise_energy,
)

__all__ = ['MAPS', 'Cayley', 'OrthogonalConv2d', 'OrthogonalTraining',
           'descend', 'hyperspherical_energy', 'minimise_energy',
           'newton_steps']
