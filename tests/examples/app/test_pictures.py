"""Pictures: images side by side, every pixel as it is."""

import pictures
import torch


def test_tiles_keep_every_pixel():
    images = torch.arange(4 * 4).reshape(4, 1, 2, 2)
    tiles = pictures.tiles(images, 16, side=2)
    assert tiles.shape == (8, 8, 3)
    assert (tiles[1:3, 1:3, 0] == 17 * images[0, 0].numpy()).all()
    assert (tiles[5:7, 1:3, 0] == 17 * images[2, 0].numpy()).all()
    assert (tiles[0] == 255).all()


def test_tiles_of_real_numbers_go_from_black_to_white():
    x = torch.tensor([-3.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    tiles = pictures.tiles(x, None, side=2)
    assert (tiles[1:3, 1:3] == 0).all()
    assert (tiles[1:3, 5:7] == 255).all()
    assert pictures.drawable((3, 4, 4), None)
    assert not pictures.drawable((2,), None)
    assert pictures.drawable((2,), 17)
