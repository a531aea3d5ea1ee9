"""What is asked of joined rows, statistic by statistic: products of what two sides know of them."""
