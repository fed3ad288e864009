"""The report of a run: one page, one picture, the numbers behind them."""
