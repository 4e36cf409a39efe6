"""Before against after: paired statistics, text metrics, the comparison of two policies and its report."""
