"""What tests share: fixtures, fakes, twins, tiny models, laws and tolerances."""
