# The stock training, without any averaging.
