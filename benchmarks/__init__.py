"""Side-by-side measurements that print ratios taken within one run; absolute seconds drift from machine to machine."""
