"""Adversarial inference: the encoder learns with the GAN, and D judges pairs (x, z).

This is the task of Donahue et al. 2016, "Adversarial Feature Learning" (arXiv 1605.09782), and
Dumoulin et al. 2016, "Adversarially Learned Inference" (arXiv 1606.00704):

    min over G, E, max over D:  E log D(x, E(x)) + E log(1 - D(G(z), z))

The losses of ``--objective`` take the place of the logarithms, and are flipped for both G and E. At
the optimum E inverts G. On the way there, E also learns that G(E(x)) = x (ALICE, Li et al. 2017,
arXiv 1709.01215). The discriminator of images is the trunk. Its last block and a small network of z
lead to a head that exists only during training. No stage for the encoder follows.
"""

from __future__ import annotations

from anoscan.networks.mappings import Mapping

ENTRY = Mapping(None, paper="Donahue et al. 2016; Dumoulin et al. 2016; Li et al. 2017")
