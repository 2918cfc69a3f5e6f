"""A batch of examples -> the gradient norm of every example, in one backward pass and without any gradient.

The gradient of one example for the weight of a linear map is G = sum over t of b_t a_t^T, with a_t what goes into the
map at position t and b_t the gradient of what comes out. Both are there in an ordinary backward pass over a whole
batch, and they are all that the norm needs:

    ||G||^2 = sum over t, t' of (a_t . a_t')(b_t . b_t')

The inner product with a direction U, which gains need, is  <G, U> = sum over t of b_t . U a_t.

(Goodfellow 2015, arXiv 1510.01799, for one position; Li et al. 2022, arXiv 2110.05679, section 4, for sequences.)

    rules.py      the sums, from activations and gradients of outputs
    collected.py  what one backward pass has shown of every parameter
    uses.py       which torch functions take a parameter, and what each means for its gradient
    batch.py      examples -> a padded batch; logits -> one loss an example
    batched.py    when all this may be done, held to the loop over single examples
"""

from localopt.tracing.ghost.batched import Batched

__all__ = ["Batched"]
