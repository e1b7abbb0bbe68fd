"""Pure parts of guided decoding: rules, sampling, stop strings, and the naive oracle that tests trust."""
