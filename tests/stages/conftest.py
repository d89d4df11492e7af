"""What the tests of single stages share: a small policy and exchanges made of it."""
