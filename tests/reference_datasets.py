"Slow twins of plm.datasets: the official rules line by line, and VehicleID's draw one vehicle at a time."
from pathlib import Path
from scipy.io import loadmat
import torch
from plm.core import generator_at


def split_slowly(name, root, train_classes):
    "{side: [(path, class name, role)]} by the wording of each set's documentation; role is '' but for In-Shop."
    root, sides = Path(root), {'train': [], 'test': []}
    if name == 'cub200':
        cub = root/'CUB_200_2011'
        for line in open(cub/'images.txt'):
            number, file = line.split()
            cls = next(l.split()[1] for l in open(cub/'image_class_labels.txt') if l.split()[0] == number)
            species = next(l.split()[1] for l in open(cub/'classes.txt') if l.split()[0] == cls)
            sides['train' if int(cls) <= train_classes else 'test'].append((f'{cub}/images/{file}', species, ''))
    elif name == 'cars196':
        mat = loadmat(root/'cars_annos.mat')
        for a in mat['annotations'][0]:
            cls = int(a['class'][0, 0])
            row = (f"{root}/{a['relative_im_path'][0]}", mat['class_names'][0, cls - 1][0], '')
            sides['train' if cls <= train_classes else 'test'].append(row)
    elif name == 'sop':
        for side in sides:
            for line in list(open(root/f'Stanford_Online_Products/Ebay_{side}.txt'))[1:]:
                _, cls, _, file = line.split()
                sides[side].append((f'{root}/Stanford_Online_Products/{file}', f"{file.split('_final')[0]}/{cls}", ''))
    elif name == 'inshop':
        for line in list(open(root/'list_eval_partition.txt'))[2:]:
            file, item, status = line.split()
            row = (f'{root}/{file}', item, '' if status == 'train' else status)
            sides['train' if status == 'train' else 'test'].append(row)
    elif name == 'grocery':
        for part in ('train', 'val', 'test'):
            for line in open(root/f'dataset/{part}.txt'):
                file, cls, _ = line.split(', ')
                row = next(l for l in open(root/'dataset/classes.csv').read().split('\n')[1:] if l.split(',')[1] == cls)
                sides['test' if int(cls) % 2 else 'train'].append((f'{root}/dataset/{file}', row.split(',')[0], ''))
    else:
        lists = {'train': ['train_list'], 'test': ['test_list_800', 'test_list_1600', 'test_list_2400']}
        for side in sides:
            for l in lists[side]:
                for line in open(root/f'VehicleID_V1.0/train_test_split/{l}.txt'):
                    image, vehicle = line.split()
                    row = (f'{root}/VehicleID_V1.0/image/{image}.jpg', vehicle, '')
                    if row not in sides[side]: sides[side].append(row)
    return sides


def draw_slowly(labels, seed):
    "For each vehicle the image with the lowest random number is the gallery's."
    chance = torch.rand(len(labels), generator=generator_at('vehicleid', 'gallery', seed), dtype=torch.float64).tolist()
    gallery = []
    for vehicle in set(labels):
        own = [i for i, v in enumerate(labels) if v == vehicle]
        gallery.append(min(own, key=lambda i: chance[i]))
    return [i for i in range(len(labels)) if i not in gallery], sorted(gallery)
