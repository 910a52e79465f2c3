"""Configuration of CREPE: a BERT's own, and how its error counts are read and trained."""

from transformers import BertConfig


class CrepeConfig(BertConfig):
    """A BertConfig under the model type `crepe`; the names of the other settings are the published checkpoint's.

    `num_error_categories`: heads, 6 in the paper. `use_poisson_loss`: counts are softplus of the heads and trained as
    rates of Poisson distributions; else the heads' own values, by squared error. `use_presence_loss`: also train the
    second set of heads, which say whether there is any error of a category; `presence_loss_weight`: their share of the
    loss, in [0, 1]. `classifier_dropout`: before the heads; None: `hidden_dropout_prob`.
    """

    model_type = "crepe"

    num_error_categories: int = 6
    use_poisson_loss: bool = False
    use_presence_loss: bool = True
    presence_loss_weight: float = 0.5


CrepeConfig.register_for_auto_class()
