"""Adversarial inference: the encoder learns with the GAN, and D judges pairs (x, z).

Donahue et al. 2016, "Adversarial Feature Learning" (arXiv 1605.09782), and Dumoulin et al.
2016, "Adversarially Learned Inference" (arXiv 1606.00704):

    min over G, E, max over D:  E log D(x, E(x)) + E log(1 - D(G(z), z))

with the losses of ``--objective`` in place of the logarithms, and flipped for both G and E. At the
optimum E inverts G; on the way there, E is also asked for G(E(x)) = x (ALICE, Li et al. 2017,
arXiv 1709.01215). The discriminator of images stays the trunk: its last block and a small network
of z go into a head that exists only during training. There is no stage for the encoder afterwards.
"""

from __future__ import annotations

from anoscan.networks.mappings import Mapping

ENTRY = Mapping(None, paper="Donahue et al. 2016; Dumoulin et al. 2016; Li et al. 2017")
